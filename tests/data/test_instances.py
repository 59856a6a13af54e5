import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from lsseg.data import CarParts, CocoInstances, NucleiDSB2018, PennFudan, SyntheticInstances
from lsseg.data.instances import InstanceSamples, collate_instances, from_map, from_masks
from lsseg.data.lookalikes import group_lookalikes, split_groups
from lsseg.data.scenes import draw_objects, draw_scene
from lsseg.errors import InputError

REAL = Path(os.environ.get("LSSEG_DATA", "../shared/data")).absolute()  # before a test hides it


def masks_of(found):
    return [found.layers[layer] == k + 1 for k, layer in enumerate(found.layer)]


def test_overlapping_masks_go_into_layers():
    masks = np.zeros((4, 5, 6), bool)
    masks[0, :3], masks[1, 2:4], masks[2, 4:], masks[3, 0, 0] = True, True, True, True
    found = from_masks(list(masks), [0, 1, 2, 0], [False, False, True, False], (5, 6))
    assert found.layer.tolist() == [0, 1, 0, 1]
    assert all((one == two).all() for one, two in zip(masks_of(found), masks, strict=True))
    assert found.crowd.tolist() == [False, False, True, False]
    assert from_masks([], [], [], (5, 6)).layers.shape == (1, 5, 6)


class Sized:
    """One image with three objects, one of them a single pixel in the corner."""

    def __len__(self):
        return 1

    def name(self, index):
        return "one"

    def read(self, index):
        ids = np.zeros((40, 60), np.int32)
        ids[5:20, 10:30], ids[39, 59], ids[25:30, 0:4] = 1, 2, 3
        g = np.random.default_rng(0)
        return g.integers(0, 256, (40, 60, 3), np.uint8), from_map(ids, [0, 1, 0])


def sample(transform, training, index=0):
    return InstanceSamples(Sized(), 2, transform, training)[index]


def unchanged(image, layers):
    return image, layers


def test_boxes_are_the_edges_of_the_masks():
    found = sample(unchanged, True)["instances"]
    assert found["boxes"].tolist() == [[10, 5, 30, 20], [59, 39, 60, 40], [0, 25, 4, 30]]
    assert found["labels"].tolist() == [0, 1, 0]


def test_what_a_crop_leaves_out_is_dropped_and_the_rest_numbered_anew():
    def crop(image, layers):
        return image[..., 24:, :], layers[..., 24:, :]

    found = sample(crop, True)["instances"]
    assert found["labels"].tolist() == [1, 0]
    assert found["boxes"].tolist() == [[59, 15, 60, 16], [0, 1, 4, 6]]
    assert sorted(np.unique(found["layers"]).tolist()) == [0, 1, 2]


def test_in_evaluation_objects_stay_at_the_size_of_the_file():
    data = SyntheticInstances(4, 4, 4, size=(40, 60), short_side=20, num_workers=0)
    item = data.samples(data.source("test"), training=False)[0]
    assert item["image"].shape == (3, 20, 30)
    assert item["instances"]["layers"].shape == (1, 40, 60)
    assert item["size"] == (40, 60)


def test_a_copy_that_fills_up_a_rank_has_no_objects():
    item = sample(unchanged, False, -1)
    assert item["index"] == -1
    assert len(item["instances"]["labels"]) == 0


def test_training_is_the_same_for_the_same_epoch_and_differs_between_epochs():
    data = SyntheticInstances(4, 4, 4, size=(48, 64), crop_size=(32, 32), photometric=0.2, num_workers=0)
    samples = data.samples(data.source("train"), training=True)
    first, again, later = samples[(0, 1)], samples[(0, 1)], samples[(1, 1)]
    torch.testing.assert_close(first["image"], again["image"], rtol=0, atol=0)
    assert not torch.equal(first["image"], later["image"])


def test_a_batch_holds_images_of_any_size():
    items = [sample(unchanged, True), sample(lambda i, m: (i[..., :20], m[..., :20]), True)]
    batch = collate_instances(items)
    assert [image.shape[-1] for image in batch["image"]] == [60, 20]
    assert batch["index"].tolist() == [0, 0]


def test_the_objects_of_a_scene_are_those_of_its_labels():
    for index in range(4):
        image, mask = draw_scene(3, index, void_width=0)
        same, ids, kinds = draw_objects(3, index)
        np.testing.assert_array_equal(image, same)
        np.testing.assert_array_equal(mask, np.array([0, *kinds])[ids])


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(InputError, match=r"one: an object has the label 1; expected 0\.\.0"):
        InstanceSamples(Sized(), 1, unchanged, True)[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"short_side": 0}, "short_side"),
        ({"short_side": (30, 20)}, "short_side"),
        ({"longest_side": 50}, "longest_side"),
        ({"short_side": 60, "longest_side": 50}, "longest_side"),
        ({"crop_size": (0, 3)}, "crop_size"),
        ({"photometric": 2.0}, "photometric"),
        ({"batch_size": 0}, "batch_size"),
        ({"objects": 0}, "objects"),
    ],
)
def test_wrong_options_are_named(options, match):
    with pytest.raises(InputError, match=match):
        SyntheticInstances(**options)


# --- COCO's format


def write_coco(root, change=None):
    """Three images: polygons and a crowd; run-length codes of both kinds; nothing at all."""
    g = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    square = np.zeros((30, 40), np.uint8, order="F")
    square[3:9, 5:15] = 1
    code = coco_mask.encode(square)
    content = {
        "images": [
            {"id": 10 + i, "file_name": f"{name}.png", "height": 30, "width": 40} for i, name in enumerate("abc")
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 1, "name": "background"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 3, "segmentation": [[2, 2, 12, 2, 12, 10, 2, 10]], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 10,
                "category_id": 7,
                "iscrowd": 1,
                "segmentation": {"size": [30, 40], "counts": [600, 300, 300]},
            },
            {
                "id": 3,
                "image_id": 11,
                "category_id": 7,
                "iscrowd": 0,
                "segmentation": {"size": [30, 40], "counts": code["counts"].decode()},
            },
            {"id": 4, "image_id": 11, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9]]},
        ],
    }
    for entry in content["images"]:
        Image.fromarray(g.integers(0, 256, (30, 40, 3), np.uint8)).save(root / "images" / entry["file_name"])
    if change:
        change(content)
    (root / "all.json").write_text(json.dumps(content))
    return root


def coco(root, **options):
    files = {"train": "all.json", "val": None, "test": "all.json"}
    folders = {"train_images": "images", "val_images": None, "test_images": "images"}
    return CocoInstances(str(root), **{**files, **folders, "val_fraction": 0.34, "num_workers": 0, **options})


def test_polygons_codes_and_crowds_are_read(tmp_path):
    data = coco(write_coco(tmp_path), categories=["cat", "dog"])
    assert data.class_names == ("cat", "dog")
    source = data.source("test")
    _, first = source.read(0)
    assert first.labels.tolist() == [0, 1]
    assert first.crowd.tolist() == [False, True]
    polygon, crowd = masks_of(first)
    assert polygon[2:10, 2:12].all()
    assert abs(int(polygon.sum()) - 80) <= 20
    assert crowd.sum() == 300
    _, second = source.read(1)
    assert second.labels.tolist() == [1]  # the category that was not asked for is left out
    assert masks_of(second)[0].sum() == 60
    assert masks_of(second)[0][3:9, 5:15].all()
    assert len(source.read(2)[1].labels) == 0


def test_without_a_validation_split_a_share_of_the_training_images_is_held_out(tmp_path):
    data = coco(write_coco(tmp_path), split_seed=1)
    assert data.class_names == ("background", "cat", "dog")  # by id
    names = {split: {data.source(split).name(i) for i in range(len(data.source(split)))} for split in ("train", "val")}
    assert len(names["val"]) == 1
    assert names["train"] | names["val"] == {"a", "b", "c"}
    assert not names["train"] & names["val"]


def test_broken_coco_files_are_named(tmp_path):
    root = write_coco(tmp_path / "good")
    with pytest.raises(InputError, match=r"data\.categories: 'horse' is none of background, cat, dog"):
        coco(root, categories=["horse"])
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        coco(root, test="nowhere.json")
    (root / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json is not JSON"):
        coco(root, test="broken.json")
    (root / "list.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="lacks the list `annotations`"):
        coco(root, test="list.json")
    with pytest.raises(InputError, match="belong together"):
        coco(root, val="all.json")
    (root / "images" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png does not exist"):
        coco(root).source("test").read(0)


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        ("images", {"id": "one"}, "an entry of `images` lacks a proper `id`"),
        ("images", {"file_name": None}, "lacks a proper `file_name`"),
        ("annotations", {"category_id": None}, "an entry of `annotations` lacks a proper `category_id`"),
        ("annotations", {"image_id": 99}, "annotation 1 is of an image that the file does not list"),
        ("categories", {"id": "a"}, "an entry of `categories` lacks a proper `id`"),
    ],
)
def test_entries_that_lack_what_is_needed_are_named(tmp_path, part, change, match):
    def spoil(content):
        content[part][0] |= change

    with pytest.raises(InputError, match=match):
        coco(write_coco(tmp_path, spoil))


def test_categories_go_by_name_and_a_split_without_objects_is_named(tmp_path):
    def renumber(content):
        for entry in (*content["categories"], *content["annotations"]):
            key = "category_id" if "image_id" in entry else "id"
            entry[key] = 10 - entry[key]

    root = write_coco(tmp_path / "one")
    other = write_coco(tmp_path / "two", renumber)
    (root / "other.json").write_text((other / "all.json").read_text())
    data = coco(root, train="other.json", val="other.json", val_images="images", categories=["cat", "dog"])
    for split in ("train", "test"):
        assert data.source(split).read(0)[1].labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="must be different names"):
        coco(root, categories=["cat", "cat"])

    def only_crowds(content):
        for entry in content["annotations"]:
            entry["iscrowd"] = 1

    crowds = write_coco(tmp_path / "three", only_crowds)
    with pytest.raises(InputError, match=r"the test split has no object: .*all\.json annotates none of its 3 images"):
        coco(crowds).source("test")


@pytest.mark.parametrize(
    "code",
    [
        [[1, 2]],
        [[1, 2, 1e9, 4, 5, 6]],
        [[1, 2, float("nan"), 4, 5, 6]],
        [[1, 2, 3, 4, 5, 6, 7]],
        {"size": [9, 9], "counts": [81]},
        None,
        "text",
        [[0, 0, "x", 1, 2, 3]],
    ],
)
def test_a_segmentation_that_cannot_be_decoded_is_named(tmp_path, code):
    def change(content):
        content["annotations"][0]["segmentation"] = code

    source = coco(write_coco(tmp_path, change)).source("test")
    with pytest.raises(InputError, match=r"all\.json: the segmentation of annotation 1 cannot be decoded"):
        source.read(0)


def test_an_image_of_another_size_than_the_file_says_is_named(tmp_path):
    def change(content):
        content["images"][0]["height"] = 31

    with pytest.raises(InputError, match=r"a\.png is 30×40, but .*all\.json says 31×40"):
        coco(write_coco(tmp_path, change)).source("test").read(0)


# --- maps of numbered objects


def write_maps(root, folder, count, sizes=((48, 48),)):
    g = np.random.default_rng(0)
    for part in ("images", folder):
        (root / part).mkdir(parents=True)
    for i in range(count):
        size = sizes[i % len(sizes)]
        ids = np.zeros(size, np.uint16)
        ids[5:15, 5:15], ids[20:40, 10:30] = 7, 300  # numbers with gaps
        shade = 30 + 3 * (i // 2)
        image = np.clip(g.normal(shade, 4, (*size, 1)).repeat(3, 2), 0, 255).astype(np.uint8)
        name = f"{'Fudan' if i % 2 else 'PennX'}{i:03d}.png"
        Image.fromarray(image).save(root / "images" / name)
        Image.fromarray(ids).save(root / folder / name)
    return root


def test_penn_fudan_is_split_by_source(tmp_path):
    data = PennFudan(str(write_maps(tmp_path, "masks", 40)), num_workers=0)
    names = {s: [data.source(s).name(i) for i in range(len(data.source(s)))] for s in ("train", "val", "test")}
    assert {s: len(own) for s, own in names.items()} == {"train": 28, "val": 4, "test": 8}
    assert len({name for own in names.values() for name in own}) == 40
    assert sum(name.startswith("Penn") for name in names["test"]) == 4
    _, found = data.source("train").read(0)
    assert found.labels.tolist() == [0, 0]
    assert [int(mask.sum()) for mask in masks_of(found)] == [100, 400]


def test_lookalikes_stay_on_one_side(tmp_path):
    root = write_maps(tmp_path, "labels", 60, ((48, 48), (48, 64)))
    data = NucleiDSB2018(str(root), num_workers=0)
    sizes = {s: len(data.source(s)) for s in ("train", "val", "test")}
    assert sum(sizes.values()) == 60
    assert all(sizes.values())
    paths = sorted((root / "images").iterdir())
    modalities, groups = group_lookalikes(paths)
    assert len(set(modalities)) == 2
    side = {data.source(s).name(i): s for s in sizes for i in range(sizes[s])}
    for group in set(groups):
        assert len({side[p.stem] for p, g in zip(paths, groups, strict=True) if g == group}) == 1
    # Two copies of one picture belong together, however their light differs.
    copy = np.asarray(Image.open(paths[0])).astype(int)
    Image.fromarray(np.clip(2 * copy + 20, 0, 255).astype(np.uint8)).save(paths[0].with_name("copy.png"))
    _, groups = group_lookalikes([paths[0], paths[0].with_name("copy.png"), *paths[2:]])
    assert groups[0] == groups[1]


def as_distributed(root, folder):
    """The same data in the layouts in which Penn-Fudan and the nuclei are distributed."""
    other = root / "as-distributed"
    for image in sorted((root / "images").iterdir()):
        ids = np.asarray(Image.open(root / folder / image.name))
        if folder == "masks":
            for part, name in (("PNGImages", image.name), ("PedMasks", f"{image.stem}_mask.png")):
                (other / part).mkdir(parents=True, exist_ok=True)
                source = image if part == "PNGImages" else root / folder / image.name
                (other / part / name).write_bytes(source.read_bytes())
            continue
        own = other / "stage1_train" / image.stem
        (own / "images").mkdir(parents=True)
        (own / "masks").mkdir()
        (own / "images" / image.name).write_bytes(image.read_bytes())
        for value in np.unique(ids)[1:]:
            Image.fromarray((ids == value).astype(np.uint8) * 255).save(own / "masks" / f"{value}.png")
    return other


@pytest.mark.parametrize(("kind", "folder"), [(PennFudan, "masks"), (NucleiDSB2018, "labels")])
def test_the_layouts_in_which_they_are_distributed_are_read(kind, folder, tmp_path):
    root = write_maps(tmp_path, folder, 20)
    ours, theirs = (kind(str(r)).source("train") for r in (root, as_distributed(root, folder)))
    assert [ours.name(i) for i in range(len(ours))] == [theirs.name(i) for i in range(len(theirs))]
    for one, two in zip(ours.read(0)[1], theirs.read(0)[1], strict=True):
        assert len(one) == len(two)
    assert sorted(m.sum() for m in masks_of(ours.read(0)[1])) == sorted(m.sum() for m in masks_of(theirs.read(0)[1]))


def test_groups_are_dealt_out_by_modality():
    modalities, groups = ["a"] * 60 + ["b"] * 20, [i // 3 for i in range(60)] + [20 + i for i in range(20)]
    part = split_groups(modalities, groups, [0.6, 0.2, 0.2], seed=1)
    for start, end in ((0, 60), (60, 80)):
        assert np.bincount(part[start:end], minlength=3).tolist() == pytest.approx(
            [0.6 * (end - start), 0.2 * (end - start), 0.2 * (end - start)], abs=3
        )
    assert (part == split_groups(modalities, groups, [0.6, 0.2, 0.2], seed=1)).all()


def test_maps_that_are_none_are_named(tmp_path):
    root = write_maps(tmp_path, "masks", 4)
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(root / "masks" / "PennX000.png")
    source = PennFudan(str(root)).source("train")
    with pytest.raises(InputError, match=r"PennX000\.png holds RGB colours"):
        [source.read(i) for i in range(len(source))]
    for kind, folder in ((PennFudan, "pennfudan"), (NucleiDSB2018, "dsb2018"), (CarParts, "car_parts")):
        with pytest.raises(InputError, match=f"no folder data/{folder}"):
            kind().source("train")
    with pytest.raises(InputError, match=r"data\.modality"):
        NucleiDSB2018(str(root), modality="x-ray")


# --- real data, where it is


@pytest.mark.skipif(not (REAL / "car_parts").is_dir(), reason="needs the real car parts (LSSEG_DATA)")
def test_real_car_parts():
    data = CarParts(str(REAL / "car_parts"))
    assert {s: len(data.source(s)) for s in ("train", "val", "test")} == {"train": 340, "val": 60, "test": 100}
    total = sum(len(data.source("test").read(i)[1].labels) for i in range(100))
    assert total == 811


@pytest.mark.skipif(not (REAL / "pennfudan").is_dir(), reason="needs the real Penn-Fudan (LSSEG_DATA)")
def test_real_penn_fudan():
    data = PennFudan(str(REAL / "pennfudan"))
    sources = [data.source(s) for s in ("train", "val", "test")]
    assert [len(s) for s in sources] == [119, 17, 34]
    assert sum(len(s.read(i)[1].labels) for s in sources for i in range(len(s))) == 423


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "dsb2018").is_dir(), reason="needs the real nuclei (LSSEG_DATA)")
def test_real_nuclei():
    data = NucleiDSB2018(str(REAL / "dsb2018"))
    sources = [data.source(s) for s in ("train", "val", "test")]
    assert [len(s) for s in sources] == [429, 84, 151]
    assert sum(len(s.read(i)[1].labels) for s in sources for i in range(len(s))) == 28_986
