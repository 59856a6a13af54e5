"""Reads data sets in COCO's format (a JSON file and a folder of images per split); lists COCO's 80 categories."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lsseg.data.classes import display_color
from lsseg.data.coco_file import BrokenSegmentation, CocoFile, checked_code, class_names, decoded, has_pixel
from lsseg.data.instances import InstanceData, Instances, from_masks
from lsseg.data.loading import held_out
from lsseg.data.module import Split
from lsseg.data.pixels import ValueRange, check_value_range, image_size, read_image, turned
from lsseg.data.root import Origin, check_count, existing_root
from lsseg.data.source import distinct_names, some_of
from lsseg.errors import ArgumentError, InputError, refuse_all, require

COUNTS_2017 = {"train": 118287, "val": 5000, "test": 5000}


class CocoObjects:
    """Reads the images of a COCO file and their objects, which are polygons, run-length codes or crowds.

    Args:
        file: The annotations.
        folder: Folder of the images.
        labels: Category id → label; objects of other categories are left out.
        images: Entries of the images to use; None uses all images of the file.
        value_range: Pixel values that become black and white (see :func:`~lsseg.data.pixels.read_image`).
    """

    def __init__(
        self,
        file: CocoFile,
        folder: Path,
        labels: dict[int, int],
        images: Sequence[dict[str, Any]] | None = None,
        value_range: ValueRange | None = None,
    ) -> None:
        self.file, self.folder, self.labels = file, folder, labels
        self.images = list(file.images if images is None else images)
        self.value_range = value_range
        self._names = distinct_names([entry["file_name"].replace("\\", "/") for entry in self.images])

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the stem of the image file, or its path below the folder if stems are not unique."""
        return self._names[index]

    def path(self, index: int) -> Path:
        """Return the path of the image file; a COCO file from Windows may separate folders by backslashes."""
        name = str(self.images[index]["file_name"])
        path = self.folder / name
        return self.folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Decode one image and the masks of its objects.

        Raises:
            InputError: If the image is missing, corrupt or not of the stated size, or if a segmentation cannot be
                decoded; the message names the file, and the annotation if one is wrong.
        """
        image = read_image(self.path(index), self.value_range)
        size = (image.shape[0], image.shape[1])
        self._compare_size(index, size)
        codes = [(annotation, self._code(annotation, size)) for annotation in self._wanted(index)]
        objects = [(annotation, decoded(code, size)) for annotation, code in codes if has_pixel(code, size)]
        labels = [self.labels[annotation["category_id"]] for annotation, _ in objects]
        crowds = [bool(annotation.get("iscrowd", 0)) for annotation, _ in objects]
        return image, from_masks([mask for _, mask in objects], labels, crowds, size)

    def check(self) -> None:
        """Check every image file and every annotation, without decoding the images; warn of empty annotations.

        Raises:
            InputError: If anything is wrong; the message lists the problems.
        """
        problems: list[str] = []
        empty: list[Any] = []
        for index in range(len(self)):
            try:
                size = image_size(self.path(index))
                self._compare_size(index, size)
            except InputError as error:
                problems.append(str(error))
                continue
            for annotation in self._wanted(index):
                try:
                    if not has_pixel(self._code(annotation, size), size):
                        empty.append(annotation.get("id"))
                except InputError as error:
                    problems.append(str(error))
        refuse_all(str(self.file.path), problems)
        if empty:
            some = some_of(empty)
            warnings.warn(
                f"{self.file.path}: {len(empty)} annotation(s) without a pixel are left out: {some}", stacklevel=2
            )

    def _wanted(self, index: int) -> list[dict[str, Any]]:
        own = self.file.annotations.get(self.images[index]["id"], [])
        return [annotation for annotation in own if annotation["category_id"] in self.labels]

    def _compare_size(self, index: int, size: tuple[int, int]) -> None:
        entry = self.images[index]
        said = (entry.get("height") or size[0], entry.get("width") or size[1])
        if said != size:
            path = self.path(index)
            raise InputError(
                f"{path} is {size[0]}×{size[1]}{turned(path)}, but {self.file.path} says {said[0]}×{said[1]}"
            )

    def _code(self, annotation: dict[str, Any], size: tuple[int, int]) -> Any:
        try:
            return checked_code(annotation, size)
        except BrokenSegmentation as error:
            raise InputError(
                f"{self.file.path}: the segmentation of annotation {annotation.get('id')} cannot be decoded: {error}"
            ) from error


class CocoInstances(InstanceData):
    """Reads any data set in COCO's format; the default files are COCO 2017, where val is also the test split.

    For COCO 2017 itself, :class:`COCO2017` also sets the class names and colours, and checks the numbers of images.

    Args:
        root: The folder; null takes ``$LSSEG_DATA/coco``, or ``data/coco`` if ``LSSEG_DATA`` is not set.
        train: Annotation file of the training split, below the root.
        train_images: Folder of the training images, below the root.
        val: Annotation file of the validation split, below the root; null holds out a share of the training split.
        val_images: Folder of the validation images, below the root.
        test: Annotation file of the test split, below the root; null tests on the validation images.
        test_images: Folder of the test images, below the root.
        val_fraction: Share of the training images that is held out for validation if ``val`` is null.
        split_seed: Seed of the draw of these images; it does not depend on the run's seed.
        categories: Names of the categories to use, in this order; null takes all, in the order of their ids.
        value_range: Pixel values that become black and white; null takes the range of the files' format.
        **options: See :class:`InstanceData`.
    """

    folder = "coco"
    hint = "it must hold annotations/instances_train2017.json, train2017/ and the same for val2017 (cocodataset.org)"

    def __init__(
        self,
        root: str | None = None,
        train: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val: str | None = "annotations/instances_val2017.json",
        val_images: str | None = "val2017",
        test: str | None = None,
        test_images: str | None = None,
        val_fraction: float = 0.15,
        split_seed: int = 0,
        categories: list[str] | None = None,
        value_range: ValueRange | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_value_range(value_range)
        self.value_range = value_range
        require(0 < val_fraction < 1, "val_fraction", val_fraction, "must lie in (0, 1)")
        for key, file, images in (("val", val, val_images), ("test", test, test_images)):
            if (file is None) != (images is None):
                raise ArgumentError(f"{key} and {key}_images belong together: give both or neither")
        if test is None or test_images is None:
            if val is None or val_images is None:
                raise ArgumentError("test and test_images must be set, because val and val_images are not")
            test, test_images = val, val_images
        self.root = existing_root(root, self.folder, self.hint)
        self.splits = {"train": (train, train_images), "test": (test, test_images)}
        if val is not None and val_images is not None:
            self.splits["val"] = (val, val_images)
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self._files: dict[str, CocoFile] = {}
        self._checked: set[Split] = set()
        names = self._all_names(test) if categories is None else categories
        different = bool(names) and len(set(names)) == len(names)
        require(different, "categories", names, "must be different names, at least one")
        self._file(test).labels(names)
        self.class_names = tuple(names)
        self.palette = tuple(display_color(label + 1) for label in range(len(names)))

    def source(self, split: Split) -> CocoObjects:
        """Return the objects of a split; raise ``InputError`` if files are missing or broken, or there is no object."""
        name, folder = self.splits.get(split, self.splits["train"])
        file = self._file(name)
        if not (self.root / folder).is_dir():
            raise InputError(f"{self.root / folder} is not a folder")
        images = file.images
        if "val" not in self.splits and split in ("train", "val"):
            held = held_out(len(images), self.val_fraction, self.split_seed, file.path)
            images = [entry for place, entry in enumerate(images) if (place in held) == (split == "val")]
        labels = file.labels(self.class_names)
        single = (
            a for e in images for a in file.annotations[e["id"]] if not a.get("iscrowd") and a["category_id"] in labels
        )
        if not any(True for _ in single):
            raise InputError(f"the {split} split has no object: {file.path} annotates none of its {len(images)} images")
        return CocoObjects(file, self.root / folder, labels, images, self.value_range)

    def check(self, *splits: Split) -> None:
        """Check all files of the splits before training begins, and warn about annotations without a pixel.

        Raises:
            InputError: If anything is wrong; the message lists the problems.
        """
        for split in splits:
            if split in self._checked:
                continue
            self.source(split).check()
            self._checked.add(split)
        super().check(*splits)

    def _all_names(self, test: str) -> list[str]:
        """Return the names of the test file's categories, without supercategories that have no object in any split."""
        file = self._file(test)
        names = class_names(file, set())
        if len(names) == len(file.categories):
            return names
        used: set[str] = set()
        for name, _ in self.splits.values():
            other = self._file(name)
            ids = other.used()
            used |= {str(category["name"]) for category in other.categories if category["id"] in ids}
        return class_names(file, {category["id"] for category in file.categories if category["name"] in used})

    def _file(self, name: str) -> CocoFile:
        if name not in self._files:
            self._files[name] = CocoFile(self.root / name)
        return self._files[name]


class COCO2017(CocoInstances):
    """Reads ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json`` of COCO 2017.

    The test split and the validation split are both val, since the annotations of the test images are not public.

    Args:
        root: The folder; null takes ``$LSSEG_DATA/coco``, or ``data/coco`` if ``LSSEG_DATA`` is not set.
        partial: Accept a split whose number of images is not the official one.
        **options: See :class:`InstanceData`.
    """

    origin = Origin(
        "coco",
        "coco",
        {
            "train2017": 118287,
            "val2017": 5000,
            "annotations/instances_train2017.json": 1,
            "annotations/instances_val2017.json": 1,
        },
        "annotations CC BY 4.0, images under Flickr's terms",
        source="cocodataset.org: train2017/, val2017/, annotations/instances_train2017.json, instances_val2017.json",
    )

    def __init__(self, root: str | None = None, partial: bool = False, **options: Any) -> None:
        super().__init__(root, categories=list(COCO_NAMES), **options)
        self.palette = COCO_PALETTE
        self.partial = partial

    def source(self, split: Split) -> CocoObjects:
        """Return the objects of a split; raise ``InputError`` if files are missing or broken, or the count is wrong."""
        source = super().source(split)
        check_count(self.root, f"{split} (2017)", len(source), COUNTS_2017[split], self.partial)
        return source


class CarParts(CocoInstances):
    """Reads car parts (Pasupa et al. 2021), 18 classes: 400 training images (60 of them validate) and 100 test images.

    Args:
        root: The folder; null takes ``$LSSEG_DATA/car_parts``, or ``data/car_parts`` if ``LSSEG_DATA`` is not set.
        **options: See :class:`CocoInstances` and :class:`InstanceData`.
    """

    origin = Origin(
        "car_parts",
        "car_parts",
        {"train": 400, "test": 100},
        "none stated; cite Pasupa et al. 2021",
        source="github.com/dsmlr/Car-Parts-Segmentation: train/, test/, annotations/instances_train.json, …_test.json",
    )

    folder = "car_parts"
    hint = "it must hold annotations/instances_train.json, instances_test.json, train/ and test/ (github.com/dsmlr)"
    names = (
        *("back_bumper", "back_glass", "back_left_door", "back_left_light", "back_right_door", "back_right_light"),
        *("front_bumper", "front_glass", "front_left_door", "front_left_light", "front_right_door"),
        *("front_right_light", "hood", "left_mirror", "right_mirror", "tailgate", "trunk", "wheel"),
    )

    def __init__(self, root: str | None = None, **options: Any) -> None:
        super().__init__(
            root,
            train="annotations/instances_train.json",
            train_images="train",
            val=None,
            val_images=None,
            test="annotations/instances_test.json",
            test_images="test",
            categories=list(self.names),
            **options,
        )


# LVIS's own table gives each category of COCO the WordNet synset that identifies it in LVIS, or the nearest synset.
# Where it gives two, the first that the file has is used.
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
# The colours are those of panoptic COCO, in the order of the names.
COLORS = """
    dc143c 770b20 00008e 0000e6 6a00e4 003c64 005064 000046 0000c0 faaa1e 64aa1e dcdc00 af74af fa001e a52a2a ff4dff
    00e2fc b6b6ff 005200 78a69d 6e4c00 ae39ff c76400 480076 ffb3f0 007d5c d10097 bcd0b6 00dcb0 ff63a4 5c0049 8581ff
    4eb4ff 00e400 aefff3 2d59ff 868667 9194ae ffd0ba c5e2ff ab8601 6d3f36 cf8aff 97005f 09503d 546933 4a4169 a6c466
    d0c3d2 ff6d41 008f95 b300c2 d1636a 057900 e3ffcd 93bad0 994501 035fa1 a3ff00 7700aa 00b6c7 00a578 b78258 5f2000
    827287 6e8185 a64a76 db8eb9 4fd272 b25a3e 41460f 7fa773 3b696a 8e6c2d c4ac00 5f3650 804cff c93901 f6007a bfa2d0
"""
COCO_PALETTE = tuple((int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code in COLORS.split())
