"""COCO 2017 as it is published."""

import json

import numpy as np
import pytest
from PIL import Image

from lsseg.data import COCO2017, CocoInstances
from lsseg.data.coco import COCO_NAMES, COCO_PALETTE
from lsseg.errors import InputError


def write_coco_2017(root):
    """A tiny copy of COCO 2017 as it unpacks: two images for training, one for validation."""
    g = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 1 + label, "name": name} for label, name in enumerate(COCO_NAMES)]
    for split, count in (("train2017", 2), ("val2017", 1)):
        (root / split).mkdir()
        images = [{"id": i, "file_name": f"{i:012}.jpg", "height": 48, "width": 64} for i in range(count)]
        for entry in images:
            Image.fromarray(g.integers(0, 256, (48, 64, 3), np.uint8)).save(root / split / entry["file_name"])
        square = [[8, 8, 40, 8, 40, 32, 8, 32]]
        objects = [
            {"id": i, "image_id": i, "category_id": 18, "iscrowd": 0, "segmentation": square} for i in range(count)
        ]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_coco_2017_has_its_names_colours_and_counts(tmp_path):
    root = write_coco_2017(tmp_path)
    data = COCO2017(str(root), partial=True)
    assert (data.num_classes, data.class_names[17], data.palette[0]) == (80, "horse", (220, 20, 60))
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert data.source("test").read(0)[1].labels.tolist() == [17]
    with pytest.raises(InputError, match=r"the train \(2017\) split in .* has 2 images, but the official .* 118287"):
        COCO2017(str(root)).source("train")


def test_what_the_tables_on_coco_train_with(tmp_path, fits):
    tested = fits("homayounfar2020", root=write_coco_2017(tmp_path / "coco"), short_side=64, longest_side=96)
    assert (tested["test_images"], len(tested["classes"])) == (1, 80)


def test_names_and_colours_are_those_of_the_official_file(real):
    path = real("fixtures", "coco_panoptic") / "panoptic_coco_categories.json"
    things = [category for category in json.loads(path.read_text()) if category["isthing"]]
    assert tuple(category["name"] for category in things) == COCO_NAMES
    assert tuple(tuple(category["color"]) for category in things) == COCO_PALETTE


def test_real_images_of_coco_and_their_run_length_codes(masks_of, real):
    root = real("fixtures", "coco_panoptic", "sample_data")
    files = dict.fromkeys(("train", "val", "test"), "panoptic_coco_detection_format.json")
    folders = dict.fromkeys(("train_images", "val_images", "test_images"), "input_images")
    data = CocoInstances(str(root), **files, **folders, num_workers=0)
    source = data.source("test")
    assert [source.name(i) for i in range(len(source))] == ["000000142238", "000000439180"]
    for i in range(2):
        image, found = source.read(i)
        masks = np.stack(masks_of(found))
        assert masks.shape[1:] == image.shape[:2]
        assert masks.sum(0).max() == 1  # a panoptic annotation: no pixel is of two
        assert masks.any(0).mean() > 0.9
    assert [data.class_names[k] for k in found.labels].count("person") == 14
