import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsseg.data import LVIS
from lsseg.errors import InputError

FIXTURES = Path(os.environ.get("LSSEG_DATA", "../shared/data")).absolute() / "fixtures"


def write_lvis(root):
    """Two images, one of each COCO folder; a person, a dog, and something that is none of COCO's categories."""
    square = [[2, 2, 12, 2, 12, 10, 2, 10]]
    content = {
        "images": [
            {
                "id": number,
                "coco_url": f"http://images.cocodataset.org/{folder}/00{number}.jpg",
                "height": 30,
                "width": 40,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
            for number, folder in ((1, "val2017"), (2, "train2017"))
        ],
        "categories": [
            {"id": 5, "name": "acorn", "synset": "acorn.n.01", "frequency": "r"},
            {"id": 9, "name": "person", "synset": "person.n.01", "frequency": "f"},
            {"id": 11, "name": "dog", "synset": "dog.n.01", "frequency": "f"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 11, "segmentation": square, "area": 80.0},
            {"id": 2, "image_id": 1, "category_id": 5, "segmentation": square, "area": 80.0},
            {"id": 3, "image_id": 2, "category_id": 9, "segmentation": square, "area": 80.0},
        ],
    }
    for number, folder in ((1, "val2017"), (2, "train2017")):
        (root / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / folder / f"00{number}.jpg")
    for split in ("train", "val"):
        (root / f"lvis_v1_{split}.json").write_text(json.dumps(content))
    return root


def test_the_categories_of_coco_in_its_order(tmp_path):
    data = LVIS(str(write_lvis(tmp_path)))
    assert (data.num_classes, data.class_names[0], data.class_names[79]) == (80, "person", "toothbrush")
    source = data.source("val")
    assert [source.name(i) for i in range(2)] == ["001", "002"]
    assert [[data.class_names[k] for k in source.read(i)[1].labels] for i in range(2)] == [["dog"], ["person"]]


def test_all_categories(tmp_path):
    data = LVIS(str(write_lvis(tmp_path)), categories="all")
    assert data.class_names == ("acorn", "person", "dog")
    assert [data.class_names[k] for k in data.source("train").read(0)[1].labels] == ["dog", "acorn"]


def test_what_lvis_lacks_is_named(tmp_path, monkeypatch):
    root = write_lvis(tmp_path / "lvis")
    with pytest.raises(InputError, match=r"data\.coco_root .*nowhere is not a folder"):
        LVIS(str(root), coco_root=str(tmp_path / "nowhere"))
    content = json.loads((root / "lvis_v1_val.json").read_text())
    for category in content["categories"]:
        category["synset"] = "other"
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no category has the synset of one of COCO's"):
        LVIS(str(root)).source("val")
    content["categories"][1].pop("frequency")
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="category 'person' lacks its frequency"):
        LVIS(str(root)).source("val")
    content["images"][0].pop("coco_url")
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="an entry of `images` lacks a proper `file_name`"):
        LVIS(str(root)).source("val")


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs real files of LVIS (LSSEG_DATA)")
def test_real_files():
    files = {"train": "lvis_val_4.json", "val": "lvis_val_4.json"}
    data = LVIS(str(FIXTURES / "lvis"), **files)
    source = data.source("val")
    found = [{data.class_names[k] for k in source.read(i)[1].labels} for i in range(len(source))]
    assert found == [{"laptop", "chair"}, {"cat"}, {"keyboard", "mouse"}, {"bus"}]
    assert len(data.labels("val")) == 79
    assert LVIS(str(FIXTURES / "lvis"), categories="all", **files).num_classes == 1230
