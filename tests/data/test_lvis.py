import json
from functools import partial

import pytest

from lsseg import data as official
from lsseg.errors import InputError

LVIS = partial(official.LVIS, partial=True)  # the tiny copies have not the official number of images


def test_the_categories_of_coco_in_its_order(tmp_path, write_lvis):
    data = LVIS(str(write_lvis(tmp_path)))
    assert (data.num_classes, data.class_names[0], data.class_names[79]) == (80, "person", "toothbrush")
    source = data.source("val")
    assert [source.name(i) for i in range(2)] == ["001", "002"]
    assert [[data.class_names[k] for k in source.read(i)[1].labels] for i in range(2)] == [["dog"], ["person"]]


def test_images_that_a_network_trained_on_coco_has_not_seen(tmp_path, write_lvis):
    root = write_lvis(tmp_path)
    data = LVIS(str(root), val_images="val2017")
    assert [data.source("test").name(i) for i in range(len(data.source("test")))] == ["001"]
    assert len(data.source("train")) == 2
    (root / "lvis_v1_val.json").write_text((root / "lvis_v1_val.json").read_text().replace("/val2017/", "/train2017/"))
    with pytest.raises(InputError, match=r"lvis_v1_val\.json has no image of val2017: set val_images"):
        LVIS(str(root), val_images="val2017").source("val")


def test_all_categories(tmp_path, write_lvis):
    data = LVIS(str(write_lvis(tmp_path)), categories="all")
    assert data.class_names == ("acorn", "person", "dog")
    assert [data.class_names[k] for k in data.source("train").read(0)[1].labels] == ["dog", "acorn"]


def test_another_number_of_images_than_the_official_one_is_refused(tmp_path, write_lvis):
    root = write_lvis(tmp_path)
    with pytest.raises(
        InputError, match=r"the train split in .* has 2 images, but the official one has 100170: get all"
    ):
        official.LVIS(str(root)).source("train")


def test_what_ap_star_is_measured_with(tmp_path, fits, write_lvis):
    tested = fits("homayounfar2020", "lvis.yaml", root=write_lvis(tmp_path / "lvis"), short_side=64, longest_side=96)
    assert (tested["test_images"], len(tested["classes"])) == (1, 80)
    assert "official_ap" in tested["scores"]


def test_what_lvis_lacks_is_named(tmp_path, monkeypatch, write_lvis):
    root = write_lvis(tmp_path / "lvis")
    with pytest.raises(InputError, match=r"coco_root .*nowhere is not a folder"):
        LVIS(str(root), coco_root=str(tmp_path / "nowhere"))
    content = json.loads((root / "lvis_v1_val.json").read_text())
    for category in content["categories"]:
        category["synset"] = "other"
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no category has the synset of a COCO category"):
        LVIS(str(root)).source("val")
    content["categories"][1].pop("frequency")
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="category 'person' lacks its frequency"):
        LVIS(str(root)).source("val")
    content["images"][0].pop("coco_url")
    (root / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="an entry of `images` has no valid `file_name`"):
        LVIS(str(root)).source("val")


def test_real_files(real):
    files = {"train": "lvis_val_4.json", "val": "lvis_val_4.json"}
    data = LVIS(str(real("fixtures", "lvis")), **files)
    source = data.source("val")
    found = [{data.class_names[k] for k in source.read(i)[1].labels} for i in range(len(source))]
    assert found == [{"laptop", "chair"}, {"cat"}, {"keyboard", "mouse"}, {"bus"}]
    assert len(data.labels("val")) == 79
    assert LVIS(str(real("fixtures", "lvis")), categories="all", **files).num_classes == 1230


def test_broken_files_are_told_before_anything_is_trained(tmp_path, write_lvis):
    root = write_lvis(tmp_path)
    path = root / "lvis_v1_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, "x", 4, 5, 6]]
    path.write_text(json.dumps(content))
    (root / "train2017" / "002.jpg").unlink()
    with pytest.raises(
        InputError, match=r"2 problems(.|\n)*annotation 1 cannot be decoded(.|\n)*002\.jpg does not exist"
    ):
        LVIS(str(root), partial=True).check("train")
