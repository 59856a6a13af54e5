"""A user's own folder, as people have them."""

import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsseg.data import FolderSegmentation
from lsseg.data.source import common_suffix, images_below, map_labels, pair_up
from lsseg.errors import InputError

SIZE = (24, 32)


def scene(seed, size=SIZE):
    g = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    y, x = g.integers(2, 10, 2)
    mask[y : y + 9, x : x + 12] = 1
    return (60 + 90 * mask[..., None] + g.integers(0, 20, (*size, 3))).astype(np.uint8), mask


def write(root, names, classes="classes: [background, disc]\n", value=lambda mask: mask, masks="masks", images="images",
          suffix=""):  # fmt: skip
    for seed, name in enumerate(names):
        image, mask = scene(seed)
        for folder, pixels, end in ((images, image, ""), (masks, value(mask), suffix)):
            path = root / folder / f"{name}{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (root / "classes.yaml").write_text(classes)
    return root


def lists(root, **splits):
    for split, names in splits.items():
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


NAMES = [f"im{i}" for i in range(8)]
SPLITS = {"train": NAMES[:4], "val": NAMES[4:6], "test": NAMES[6:]}


def names_of(data, split):
    source = data.source(split)
    return [source.name(i) for i in range(len(source))]


def test_a_class_without_a_pixel_beside_255_is_refused(tmp_path):
    root = lists(write(tmp_path, NAMES, value=lambda mask: mask * 255), **SPLITS)
    with pytest.raises(
        InputError, match=r"^[^\n]*classes\.yaml: no training mask has a pixel of disc, .*write `disc: 255`"
    ):
        FolderSegmentation(str(root)).check("train")
    (root / "classes.yaml").write_text("classes: {background: 0, disc: 255}\n")
    FolderSegmentation(str(root)).check("train", "val", "test")
    (root / "classes.yaml").write_text("classes: [background, disc]\nvoid: [255]\n")
    with pytest.warns(UserWarning, match="no training mask has a pixel of disc"):
        FolderSegmentation(str(root)).check("train")


def test_255_beside_all_classes_and_an_absent_class_are_said(tmp_path):
    def some_void(mask):
        mask = mask.copy()
        mask[0] = 255
        return mask

    root = lists(write(tmp_path, NAMES, value=some_void), **SPLITS)
    with pytest.warns(UserWarning, match=r"128 pixels of the training masks have the value 255 and are ignored"):
        FolderSegmentation(str(root)).check("train")
    (root / "classes.yaml").write_text("classes: [background, disc, never]\nvoid: [255]\n")
    with pytest.warns(UserWarning, match=r"no training mask has a pixel of never \(.*classes\.yaml\)"):
        FolderSegmentation(str(root)).check("train")


def test_all_files_are_looked_at_and_all_that_is_wrong_is_listed(tmp_path):
    root = lists(write(tmp_path, NAMES), **SPLITS)
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(root / "masks" / "im1.png")
    Image.fromarray(scene(0, (9, 9))[1] + np.arange(4, 13, dtype=np.uint8)).save(root / "masks" / "im3.png")
    data = FolderSegmentation(str(root))
    data.check("val", "test")
    with pytest.raises(InputError) as caught:
        data.check("val", "train")
    said = str(caught.value).splitlines()
    assert said[0] == f"the data in {root}: 3 problems"
    assert "im1.png holds the value 7, which is not a class" in said[1]
    assert "im3.png is 24×32, but its mask" in said[2]
    assert "im3.png holds the values 4, 5, 6, 7, 8, 9, 10, 11 and " in said[3]


def test_all_images_without_a_mask_and_all_wrong_names_in_lists_are_told(tmp_path):
    root = lists(write(tmp_path, NAMES), **SPLITS)
    for name in NAMES[:2]:
        (root / "masks" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"2 problems\n.*im0.png has no mask: .*\n.*im1.png has no mask: "):
        FolderSegmentation(str(root)).source("train")
    (root / "train.txt").write_text("im0\nnone\nim2\nnor this\n")
    with pytest.raises(InputError, match=r"2 problems\n.* names 'none', .*\n.* names 'nor this', but .* has no image"):
        FolderSegmentation(str(root)).source("train")


def test_a_turned_photograph_that_does_not_fit_its_mask_is_said_to_be_turned(tmp_path):
    root = lists(write(tmp_path, NAMES), **SPLITS)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(0)[0]).save(root / "images" / "im0.png", exif=exif)
    data = FolderSegmentation(str(root))
    for look in (lambda: data.check("train"), lambda: data.source("train").read(0)):
        with pytest.raises(
            InputError, match=r"im0\.png is 32×24 \(its EXIF orientation, 6, turns it as it is seen\), but"
        ):
            look()


def test_colours_stand_for_classes(tmp_path):
    palette = np.array([[0, 0, 0], [220, 60, 60]], np.uint8)
    classes = "classes: {background: [0, 0, 0], disc: [220, 60, 60]}\nvoid: [[255, 255, 255]]\n"
    root = lists(write(tmp_path, NAMES, classes, value=lambda mask: palette[mask]), **SPLITS)
    data = FolderSegmentation(str(root))
    data.check("train", "val", "test")
    assert data.palette == ((0, 0, 0), (220, 60, 60))
    assert np.array_equal(data.source("train").read(2)[1], scene(2)[1])
    pixels = palette[scene(1)[1]]
    pixels[3, 4], pixels[5, 6] = 255, (1, 2, 3)
    Image.fromarray(pixels).save(root / "masks" / "im1.png")
    with pytest.raises(
        InputError, match=r"im1\.png holds the colour \[1, 2, 3\], which is not a class; .* \[220, 60, 60\]"
    ):
        data.source("train").read(1)
    for void, declared in (("void: [255, 255]", {255}), ("void: 0", {0}), ("void:", set())):
        (root / "classes.yaml").write_text(f"classes: {{background: 3, disc: 1}}\n{void}\n")
        assert FolderSegmentation(str(root)).classes.void == declared
    (root / "classes.yaml").write_text(classes.replace("]]", "], [255, 255, 255]]"))
    assert FolderSegmentation(str(root)).classes.colors[255, 255, 255] == 255
    for wrong, match in (
        ("classes: {background: [0, 0, 0], disc: 1}", "so 'disc' must have one, too"),
        ("classes: {background: [0, 0, 0], disc: [0, 0, 0]}", "'background' and 'disc' have the same colour"),
        ("classes: {background: [0, 0, 0], disc: [0, 0, 256]}", "so 'disc' must have one, too"),
        ("classes: {background: [0, 0, 0], disc: [1, 0, 0]}\nvoid: [255]", "void must list colours"),
    ):
        (root / "classes.yaml").write_text(wrong)
        with pytest.raises(InputError, match=match):
            FolderSegmentation(str(root))


@pytest.mark.parametrize("suffix", ["_mask", "_gt_labelIds"])
def test_masks_with_a_suffix_and_folders_of_any_names(tmp_path, suffix):
    root = lists(write(tmp_path, NAMES, suffix=suffix, images="x-ray", masks="truth/fine"), **SPLITS)
    for given in (None, suffix):
        data = FolderSegmentation(str(root), images_folder="x-ray", masks_folder="truth/fine", mask_suffix=given)
        assert names_of(data, "train") == NAMES[:4]
        assert np.array_equal(data.source("train").read(1)[1], scene(1)[1])
    with pytest.raises(InputError, match=r"im0\.png has no mask: expected .*fine/im0_label\.png"):
        FolderSegmentation(str(root), images_folder="x-ray", masks_folder="truth/fine", mask_suffix="_label").source(
            "train"
        )


def test_the_suffix_of_masks_is_that_of_all_images(tmp_path):
    names = [str(number) for number in range(1, 13)]
    root = lists(write(tmp_path / "a", names, suffix="_mask"), train=names[2:], val=["1"], test=["2"])
    data = FolderSegmentation(str(root))
    pairs = [pair for split in ("train", "val", "test") for pair in data.source(split).pairs]
    assert all(mask.name == f"{image.stem}_mask.png" for image, mask in pairs)
    (root / "masks" / "2_mask.png").unlink()  # the others' suffix is still known
    with pytest.raises(InputError, match=r"images/2\.png has no mask: expected .*/2_mask\.png"):
        FolderSegmentation(str(root)).source("test")
    for path in sorted((root / "masks").iterdir()):
        path.with_name(path.name.replace("_mask", "_edge")).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"several masks fit .*'_edge', '_mask'.*: set mask_suffix"):
        FolderSegmentation(str(root)).source("train")
    # Masks of the images' own names come first, unless they are those of a few images only.
    assert common_suffix(names, [*names, *(f"{name}_mask" for name in names)], root) == ""
    assert common_suffix(names, ["3", *(f"{name}_mask" for name in names)], root) == "_mask"
    # Splits in folders of their own have one suffix, too.
    for split, own in (("train", names[2:]), ("val", ["1"])):
        write(tmp_path / "b", own, suffix="_mask", images=f"images/{split}", masks=f"masks/{split}")
    Image.new("L", (20, 16)).save(tmp_path / "b" / "masks" / "val" / "10_mask.png")
    data = FolderSegmentation(str(tmp_path / "b"))
    assert [mask.name for _, mask in data.source("val").pairs] == ["1_mask.png"]


def test_folders_that_are_links_are_read(tmp_path):
    root = write(tmp_path / "a", ["x/1", "x/2"])
    for part in ("images", "masks"):
        (root / part / "y").symlink_to(root / part / "x")
        (root / part / "x" / "round").symlink_to(root / part)  # leads into itself
    data = FolderSegmentation(str(root), val_fraction=0, test_fraction=0)
    assert names_of(data, "train") == ["x/1", "x/2", "y/1", "y/2"]


def test_shares_that_leave_a_split_without_an_image(tmp_path):
    root = str(write(tmp_path, NAMES))
    for shares, split in (({"val_fraction": 0}, "val"), ({"val_fraction": 0.99, "test_fraction": 0}, "train")):
        with pytest.raises(
            InputError, match=rf"images has 8 image\(s\), of which data\.val_fraction .* none for {split}"
        ):
            FolderSegmentation(root, **shares).check("train", "val")


def test_splits_of_other_spellings(tmp_path):
    for split, names in (("Training", ["1", "2"]), ("Validate", ["3"])):
        write(tmp_path / "a", names, images=f"images/{split}", masks=f"masks/{split}")
    data = FolderSegmentation(str(tmp_path / "a"))
    assert (names_of(data, "train"), names_of(data, "val"), data.has_test) == (["1", "2"], ["3"], False)
    Image.new("RGB", (20, 16)).save(tmp_path / "a" / "images" / "loose.png")
    with pytest.warns(UserWarning, match=r"images: 1 image\(s\) are in no split's folder and are not used: .*loose"):
        data.check("train", "val")
    root = lists(write(tmp_path / "b", NAMES), Train=NAMES[:4], VAL=NAMES[4:])
    assert names_of(FolderSegmentation(str(root)), "train") == NAMES[:4]


def test_the_path_is_the_identity_of_an_image(tmp_path):
    root = write(tmp_path, ["cam0/0001", "cam1/0001", "cam1/deep/0001", "top", "a.b", "a.c"])
    data = FolderSegmentation(str(root), val_fraction=0, test_fraction=0)
    assert names_of(data, "train") == ["a.b", "a.c", "cam0/0001", "cam1/0001", "cam1/deep/0001", "top"]
    assert np.array_equal(data.source("train").read(3)[1], scene(1)[1])
    lists(root, train=["cam0/0001.png", "top"], val=["cam1/0001"], test=["0001"])
    with pytest.raises(InputError, match=r"test\.txt names '0001', but .* has several"):
        names_of(FolderSegmentation(str(root)), "test")
    lists(root, test=["deep/0001", "/else/images/cam1/0001.jpg", "./images/top.png", "elsewhere/a.b"])
    assert names_of(FolderSegmentation(str(root)), "test") == ["cam1/deep/0001", "cam1/0001", "top", "a.b"]
    lists(root, test=["cam2/0001"])  # must not be an image of another folder
    with pytest.raises(InputError, match=r"test\.txt names 'cam2/0001', but .* has no image of this name"):
        names_of(FolderSegmentation(str(root)), "test")
    assert names_of(FolderSegmentation(str(root)), "train") == ["cam0/0001", "top"]


def test_byte_order_marks_and_letters_with_accents_in_two_parts(tmp_path):
    composed = ["Ünï", "café"]
    root = write(tmp_path, [unicodedata.normalize("NFD", name) for name in composed] + ["日本", "UP"])
    for name in composed:
        mask = root / "masks" / f"{unicodedata.normalize('NFD', name)}.png"
        mask.rename(root / "masks" / f"{unicodedata.normalize('NFC', name)}.png")
    lists(root, train=[*composed, "日本"], val=["UP"], test=["UP"])
    for file in ("train.txt", "classes.yaml"):
        (root / file).write_bytes(b"\xef\xbb\xbf" + (root / file).read_bytes().replace(b"\n", b"\r\n"))
    data = FolderSegmentation(str(root))
    assert names_of(data, "train") == [*composed, "日本"]
    assert data.class_names == ("background", "disc")


def test_a_list_that_names_an_image_twice_or_a_training_image_says_so(tmp_path):
    root = lists(write(tmp_path, NAMES), train=["im0", "im1", "im0"], val=["im2"], test=["im1", "im3"])
    data = FolderSegmentation(str(root))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data.check("train", "val", "test")
    assert sorted(str(warning.message).rpartition("/")[2].partition(":")[0] for warning in said) == [
        "test.txt names 1 of the training images (im1)",
        "train.txt names im0 twice; it is used once",
    ]
    assert names_of(data, "train") == ["im0", "im1"]


@pytest.mark.parametrize("kind", ["folders", "lists", "valid"])
def test_without_a_validation_split_a_share_of_the_training_images_validates(tmp_path, kind):
    if kind == "lists":
        root = lists(write(tmp_path, NAMES), train=NAMES[:6], test=NAMES[6:])
    else:
        root = write(tmp_path, [f"{'train' if i < 6 else 'test'}/{name}" for i, name in enumerate(NAMES)])
    if kind == "valid":
        write(tmp_path, ["valid/other"])
    data = FolderSegmentation(str(root))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train, val, test = (names_of(data, split) for split in ("train", "val", "test"))
    assert test == NAMES[6:]
    if kind == "valid":
        assert (train, val, said) == (NAMES[:6], ["other"], [])
    else:
        assert (len(train), len(val), sorted(train + val)) == (5, 1, NAMES[:6])
        assert [str(one.message) for one in said] == [
            f"{root} has no val split: validation uses 1 of its 6 training images (data.val_fraction 0.15)"
        ]


def test_16_bit_images_of_a_folder(tmp_path):
    root = lists(write(tmp_path, NAMES), **SPLITS)
    for name in NAMES:
        Image.fromarray(np.full(SIZE, 2000, np.uint16)).save(root / "images" / f"{name}.png")
    assert FolderSegmentation(str(root)).source("train").read(0)[0].max() == 8
    data = FolderSegmentation(str(root), value_range=(0, 4000), images=str(root / "images"))
    assert data.source("train").read(0)[0].max() == 128
    assert int(data.predict_images()[0]["image"].max()) == 128
    for wrong in ((1, 1), (5, 0)):
        with pytest.raises(InputError, match=r"value_range must be two numbers, the smaller one first"):
            FolderSegmentation(str(root), value_range=wrong)


def test_predicted_images_have_names_of_their_own(tmp_path):
    root = write(tmp_path, NAMES[:2])
    image = Image.fromarray(scene(0)[0])
    for name in ("cam0/0001.png", "cam1/0001.png", "x.png", "x.jpg", "a/b/c.webp", "top.PNG"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / name)
    images = FolderSegmentation(str(root), images=str(tmp_path / "photos")).predict_images()
    assert images.names == ["a/b/c", "cam0/0001", "cam1/0001", "top", "x.jpg", "x.png"]


@pytest.mark.parametrize(("count", "expected"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (12, (8, 2, 2))])
def test_few_images_are_divided_so_that_no_split_is_empty(tmp_path, count, expected):
    data = FolderSegmentation(str(write(tmp_path, [f"im{i}" for i in range(count)])))
    assert tuple(len(data.source(split)) for split in ("train", "val", "test")) == expected
    data.check("train", "val", "test")


def test_too_few_images_are_said_to_be_too_few(tmp_path):
    data = FolderSegmentation(str(write(tmp_path, ["one"])))
    with pytest.raises(
        InputError, match=r"images has 1 image\(s\), of which data\.val_fraction 0\.15 .* leave none for val"
    ):
        data.check("train", "val")


def test_images_that_cannot_be_predicted_are_all_named_before_any_is(tmp_path):
    root = write(tmp_path, NAMES[:2])
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(scene(0)[0]).save(photos / "a.png")
    (photos / "b.png").write_text("<html>")
    (photos / "c.png").symlink_to("nowhere.png")
    data = FolderSegmentation(str(root), images=str(photos))
    with pytest.raises(InputError) as caught:
        data.setup("predict")
    said = str(caught.value).splitlines()
    assert said[0] == "data.images: 2 problems"
    assert said[1].endswith("b.png: it is broken, or not an image of a known format")
    assert said[2].endswith("c.png does not exist")


def test_one_training_image_cannot_be_held_out_and_no_share_is_no_test(tmp_path):
    root = lists(write(tmp_path, NAMES), train=NAMES[:1], test=NAMES[1:])
    with pytest.raises(InputError, match="validation would use 1 of its 1 training images, and none"):
        FolderSegmentation(str(root)).source("train")
    for split in ("train", "test"):
        (root / f"{split}.txt").unlink()
    assert [FolderSegmentation(str(root), test_fraction=share).has_test for share in (0.2, 0.0)] == [True, False]


def test_masks_without_an_image_are_told(tmp_path):
    root = write(tmp_path, NAMES, suffix="_mask")
    for name in ("more", "deep/other"):
        (root / "masks" / f"{name}_mask.png").parent.mkdir(exist_ok=True)
        Image.fromarray(scene(0)[1]).save(root / "masks" / f"{name}_mask.png")
    with pytest.warns(
        UserWarning, match=r"masks: 2 mask\(s\) have no image and are not used: deep/other_mask, more_mask"
    ):
        FolderSegmentation(str(root)).check("train")


def test_values_above_16_bits_are_no_class():
    mask = np.array([[0, 65535], [70000, -3]], np.int32)
    with pytest.raises(InputError, match="holds the values -3, 70000, which are "):
        map_labels(mask, {0: 0, 65535: 1}, Path("a.tif"))
    assert map_labels(mask[:1], {0: 0, 65535: 1}, Path("a.tif")).tolist() == [[0, 1]]


def test_masks_whose_names_differ_in_unicode_form_only_are_told(tmp_path):
    (tmp_path / "masks").mkdir()
    names = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    for name in names:
        Image.fromarray(scene(0)[1]).save(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(InputError, match="has several files named caf"):
        pair_up([tmp_path / "images" / f"{names[0]}.png"], tmp_path / "masks")


def test_images_of_formats_that_are_not_read_are_told(tmp_path):
    root = write(tmp_path, NAMES)
    for name in ("a.heic", "b.DCM", "._a.heic"):
        (root / "images" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"images: 2 file\(s\) are left out; their format is not read: a\.heic, b"):
        assert len(images_below(root / "images")) == len(NAMES)
    for path in (root / "images").glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"there is no image in .*images; their format is not read: a\.heic"):
        images_below(root / "images")
