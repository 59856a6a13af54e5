"""COCO's 80 categories of objects: names, the synsets that LVIS knows them by, colours."""

# LVIS's own table of COCO's categories: the name in COCO and the WordNet synset, by which LVIS knows its categories
# (or the nearest that it has).
TABLE = """
    person:person.n.01, bicycle:bicycle.n.01, car:car.n.01, motorcycle:motorcycle.n.01, airplane:airplane.n.01,
    bus:bus.n.01, train:train.n.01, truck:truck.n.01, boat:boat.n.01, traffic light:traffic_light.n.01, fire
    hydrant:fireplug.n.01, stop sign:stop_sign.n.01, parking meter:parking_meter.n.01, bench:bench.n.01,
    bird:bird.n.01, cat:cat.n.01, dog:dog.n.01, horse:horse.n.01, sheep:sheep.n.01, cow:beef.n.01,
    elephant:elephant.n.01, bear:bear.n.01, zebra:zebra.n.01, giraffe:giraffe.n.01, backpack:backpack.n.01,
    umbrella:umbrella.n.01, handbag:bag.n.04, tie:necktie.n.01, suitcase:bag.n.06, frisbee:frisbee.n.01,
    skis:ski.n.01, snowboard:snowboard.n.01, sports ball:ball.n.06, kite:kite.n.03, baseball
    bat:baseball_bat.n.01, baseball glove:baseball_glove.n.01, skateboard:skateboard.n.01,
    surfboard:surfboard.n.01, tennis racket:tennis_racket.n.01, bottle:bottle.n.01, wine glass:wineglass.n.01,
    cup:cup.n.01, fork:fork.n.01, knife:knife.n.01, spoon:spoon.n.01, bowl:bowl.n.03, banana:banana.n.02,
    apple:apple.n.01, sandwich:sandwich.n.01, orange:orange.n.01, broccoli:broccoli.n.01, carrot:carrot.n.01,
    hot dog:frank.n.02|sausage.n.01, pizza:pizza.n.01, donut:doughnut.n.02, cake:cake.n.03, chair:chair.n.01,
    couch:sofa.n.01, potted plant:pot.n.04, bed:bed.n.01, dining table:dining_table.n.01, toilet:toilet.n.02,
    tv:television_receiver.n.01, laptop:laptop.n.01, mouse:mouse.n.04, remote:remote_control.n.01,
    keyboard:computer_keyboard.n.01, cell phone:cellular_telephone.n.01, microwave:microwave.n.02,
    oven:oven.n.01, toaster:toaster.n.02, sink:sink.n.01, refrigerator:electric_refrigerator.n.01,
    book:book.n.01, clock:clock.n.01, vase:vase.n.01, scissors:scissors.n.01, teddy bear:teddy.n.01, hair
    drier:hand_blower.n.01, toothbrush:toothbrush.n.01
"""
COCO_SYNSETS = dict(entry.split(":") for entry in " ".join(TABLE.split()).split(", "))
COCO_NAMES = tuple(COCO_SYNSETS)
# Of panoptic COCO, in the order of the names.
COLORS = """
    dc143c 770b20 00008e 0000e6 6a00e4 003c64 005064 000046 0000c0 faaa1e 64aa1e dcdc00 af74af fa001e a52a2a ff4dff
    00e2fc b6b6ff 005200 78a69d 6e4c00 ae39ff c76400 480076 ffb3f0 007d5c d10097 bcd0b6 00dcb0 ff63a4 5c0049 8581ff
    4eb4ff 00e400 aefff3 2d59ff 868667 9194ae ffd0ba c5e2ff ab8601 6d3f36 cf8aff 97005f 09503d 546933 4a4169 a6c466
    d0c3d2 ff6d41 008f95 b300c2 d1636a 057900 e3ffcd 93bad0 994501 035fa1 a3ff00 7700aa 00b6c7 00a578 b78258 5f2000
    827287 6e8185 a64a76 db8eb9 4fd272 b25a3e 41460f 7fa773 3b696a 8e6c2d c4ac00 5f3650 804cff c93901 f6007a bfa2d0
"""
COCO_PALETTE = tuple((int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code in COLORS.split())
