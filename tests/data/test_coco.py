import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lsseg.data import CarParts, CocoFolder, CocoInstances
from lsseg.data.coco_file import checked_code, decoded
from lsseg.errors import InputError


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


def test_polygons_codes_and_crowds_are_read(tmp_path, masks_of):
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
    with pytest.raises(InputError, match=r"has no category 'horse'; it has background, cat, dog"):
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
        ("images", {"id": "one"}, "an entry of `images` has no valid `id`"),
        ("images", {"file_name": None}, "has no valid `file_name`"),
        ("annotations", {"category_id": None}, "an entry of `annotations` has no valid `category_id`"),
        ("annotations", {"image_id": 99}, "annotation 1 is of an image that the file does not list"),
        ("categories", {"id": "a"}, "an entry of `categories` has no valid `id`"),
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
        [[1, 2, 1e9, 4, 5, 6]],
        [[1, 2, float("nan"), 4, 5, 6]],
        [[1, 2, 3, 4, 5, 6, 7]],
        {"size": [9, 9], "counts": [81]},
        {"size": [40, 30], "counts": [1200]},
        {"size": [30, 40], "counts": [600, 300]},
        {"size": [30, 40], "counts": [600, 300, 9000]},
        {"size": [30, 40], "counts": [700, -100, 600]},
        {"size": [30, 40], "counts": [600.5, 599.5]},
        {"size": [30, 40], "counts": "0"},
        {"size": [30, 40], "counts": "~"},
        {"size": [30, 40], "counts": "o"},
        {"counts": [1200]},
        "text",
        [[0, 0, "x", 1, 2, 3]],
        [[0, 0, None, 1, 2, 3]],
        [[0, 0, [1], 1, 2, 3]],
    ],
)
def test_a_segmentation_that_cannot_be_decoded_is_named(tmp_path, code):
    def change(content):
        content["annotations"][0]["segmentation"] = code

    data = coco(write_coco(tmp_path, change))
    for look in (lambda: data.source("test").read(0), lambda: data.check("test")):
        with pytest.raises(InputError, match=r"^[^\n]*all\.json: the segmentation of annotation 1 cannot be decoded"):
            look()


@pytest.mark.parametrize(
    "code",
    [
        *(None, [], {}, [[]], [[1, 2]], [[10.0, 10.0, 30.0, 30.0]], "missing"),
        [[50, 40, 60, 40, 60, 50]],  # outside of the image
        [[10, 10, 30, 10, 20, 10]],  # a line
        {"size": [30, 40], "counts": [1200]},
    ],
)
def test_annotations_without_a_pixel_are_left_out_and_counted(tmp_path, code, masks_of):
    def change(content):
        content["annotations"][0]["segmentation"] = code
        if code == "missing":
            del content["annotations"][0]["segmentation"]

    data = coco(write_coco(tmp_path, change))
    with pytest.warns(UserWarning, match=r"all\.json: 1 annotation\(s\) without a pixel are left out: 1$"):
        data.check("test")
    first = masks_of(data.source("test").read(0)[1])
    assert [int(mask.sum()) for mask in first] == [300]


def test_a_crumb_beside_a_polygon_and_a_flat_list_are_read(tmp_path, masks_of):
    polygon = [2, 2, 12, 2, 12, 10, 2, 10]

    def read(code):
        def change(content):
            content["annotations"][0]["segmentation"] = code

        root = tmp_path / str(len(list(tmp_path.iterdir())))
        return masks_of(coco(write_coco(root, change)).source("test").read(0)[1])[0]

    for code in ([polygon, [1.0, 1.0, 2.0, 2.0]], polygon, [*map(float, polygon)]):
        assert np.array_equal(read(code), read([polygon]))


@pytest.mark.parametrize("seed", range(4))
def test_runs_are_decoded_as_by_the_official_code(seed):
    mask = np.random.default_rng(seed).random((17, 23)) < (0.5, 0.01, 0.0, 1.0)[seed]
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (code["counts"], code["counts"].decode()):
        checked = checked_code({"segmentation": {"size": [17, 23], "counts": counts}}, (17, 23))
        assert np.array_equal(decoded(checked, (17, 23)), mask)


def test_all_that_is_wrong_is_listed(tmp_path):
    def change(content):
        content["annotations"][0]["segmentation"] = "text"
        content["annotations"][2]["segmentation"]["size"] = [9, 9]

    root = write_coco(tmp_path, change)
    (root / "images" / "c.png").unlink()
    with pytest.raises(InputError) as caught:
        coco(root).check("test")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("all.json: 3 problems")
    for said in ("annotation 1 cannot", "annotation 3 cannot", "c.png does not exist"):
        assert sum(said in line for line in lines) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["images"][1].update(id=10), "two entries of `images` have the id 10"),
        (lambda c: c["images"][1].update(file_name="a.png"), "two entries of `images` have the file_name 'a.png'"),
        (lambda c: c["categories"][1].update(id=7), "two entries of `categories` have the id 7"),
        (
            lambda c: c["annotations"][0].update(category_id=77),
            "annotation 1 is of the category 77, which the file does not list",
        ),
        (lambda c: c["annotations"][0].update(iscrowd="0"), "iscrowd of annotation 1 must be 0 or 1, not '0'"),
        (lambda c: c["images"][1].update(height=0), "the height of image 'b.png' must be a number of pixels, not 0"),
        (lambda c: c["images"][1].update(file_name=""), "it must be text, not ''"),
        (lambda c: c["annotations"][0].update(image_id="10"), "it must be a whole number, not '10'"),
        (lambda c: c["annotations"][0].update(category_id=3.5), "it must be a whole number, not 3.5"),
        (
            lambda c: c["categories"][1].update(name="dog"),
            r"the categories 3 and 7 have the same name, 'dog', and both have",
        ),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        coco(write_coco(tmp_path, change))


@pytest.mark.parametrize("first", [True, False])
def test_a_root_category_is_no_class_and_drops_no_object(tmp_path, first):
    def add(name):
        def change(content):
            for category in content["categories"]:
                category["supercategory"] = name
            root = {"id": 0 if first else 99, "name": name, "supercategory": "none"}
            content["categories"].insert(0 if first else 3, root)

        return write_coco(tmp_path / name, change)

    for name in ("dog", "animals"):
        data = coco(add(name))
        assert set(data.class_names) == {"background", "cat", "dog"}
        source = data.source("test")
        assert [data.class_names[k] for i in range(2) for k in source.read(i)[1].labels] == [
            *("cat", "dog", "dog", "background")
        ]


def test_a_byte_order_mark_points_in_ids_and_backslashes_do_no_harm(tmp_path):
    def change(content):
        for entry in content["images"]:
            entry.update(id=float(entry["id"]), file_name=f"deep\\{entry['file_name']}", height=30.0, width=40.0)

    root = write_coco(tmp_path, lambda content: None)
    content = json.loads((root / "all.json").read_text())
    change(content)
    (root / "images" / "deep").mkdir()
    for name in "abc":
        (root / "images" / f"{name}.png").rename(root / "images" / "deep" / f"{name}.png")
    (root / "all.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    source = coco(root).source("test")
    assert [source.name(i) for i in range(3)] == ["a", "b", "c"]
    assert len(source.read(0)[1].labels) == 2


def test_images_of_one_stem_have_names_of_their_own(tmp_path):
    def change(content):
        for entry, name in zip(content["images"], ("x/1.png", "y/1.png", "y/1.jpg"), strict=True):
            entry["file_name"] = name

    root = write_coco(tmp_path)
    content = json.loads((root / "all.json").read_text())
    change(content)
    (root / "all.json").write_text(json.dumps(content))
    source = coco(root).source("test")
    assert [source.name(i) for i in range(3)] == ["x/1.png", "y/1.png", "y/1.jpg"]


def test_an_export_beside_its_images_is_one_key(tmp_path):
    root = write_coco(tmp_path / "made")
    for part in ("train", "valid"):
        (root / part).mkdir()
        for file in (root / "images").iterdir():
            (root / part / file.name).write_bytes(file.read_bytes())
        (root / part / "_annotations.coco.json").write_text((root / "all.json").read_text())
    data = CocoFolder(str(root), categories=["cat", "dog"])
    assert data.class_names == ("background", "cat", "dog")
    _, mask = data.source("test").read(0)
    assert set(np.unique(mask)) == {0, 1, 2}
    with pytest.warns(UserWarning, match="its validation images are also the test images"):
        data.check("test")
    with pytest.raises(InputError, match=r"is not an export in COCO's format: expected train/_annotations\.coco\.json"):
        CocoFolder(str(tmp_path))


def test_the_validation_images_are_the_test_images_where_no_others_are_given(tmp_path):
    root = write_coco(tmp_path)
    files = {"train": "all.json", "train_images": "images", "val": "all.json", "val_images": "images"}
    assert len(CocoInstances(str(root), **files).source("test")) == 3
    with pytest.raises(InputError, match="test and test_images must be set, because val and val_images are not"):
        CocoInstances(str(root), **{**files, "val": None, "val_images": None})
    with pytest.raises(InputError, match="test and test_images belong together"):
        CocoInstances(str(root), **files, test="all.json")


def test_an_image_of_another_size_than_the_file_says_is_named(tmp_path):
    def change(content):
        content["images"][0]["height"] = 31

    with pytest.raises(InputError, match=r"a\.png is 30×40, but .*all\.json says 31×40"):
        coco(write_coco(tmp_path, change)).source("test").read(0)


# --- maps of numbered objects


def test_real_car_parts(real):
    data = CarParts(str(real("car_parts")))
    assert {s: len(data.source(s)) for s in ("train", "val", "test")} == {"train": 340, "val": 60, "test": 100}
    total = sum(len(data.source("test").read(i)[1].labels) for i in range(100))
    assert total == 811
