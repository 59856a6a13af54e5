"""`lsseg data check` and `lsseg init`, on folders as users have them."""

import json
import shlex
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from lsseg.callbacks import drawing


@pytest.fixture
def mine(tmp_path):
    """Twelve images and masks of 0 and 255, in no splits, without classes.yaml."""
    root = tmp_path / "mine"
    g = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(12):
        mask = np.zeros((40, 56), np.uint8)
        mask[5 + i : 20 + i, 9:30] = 255
        image = (50 + mask[..., None] // 3 + g.integers(0, 20, (40, 56, 3))).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i:02}.png")
    return root


def test_a_folder_is_looked_at_and_its_configuration_trains_as_it_stands(lsseg, mine, tmp_path, monkeypatch):
    status, out, err = lsseg("init", mine)
    assert status == 0, err
    assert "images: 8 train, 2 val, 2 test; 40×56 pixels" in out
    assert yaml.safe_load((mine / "classes.yaml").read_text()) == {"classes": {"background": 0, "class255": 255}}
    head = [line for line in (tmp_path / "mine.yaml").read_text().splitlines() if line.startswith("# ")]
    assert any("lsseg fit --config mine.yaml" in line for line in head)
    tiny = ("--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.num_workers=0")
    net = ("--model.network.encoder_name=tu-test_resnet.r160_in1k", "--model.network.encoder_weights=null")
    quick = (*tiny, *net, "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--wandb.mode=disabled")
    status, _, err = lsseg("fit", "--config", "mine.yaml", *quick, "--test_after_fit=true")
    assert status == 0, err
    assert json.loads((tmp_path / "runs" / "mine" / "test.json").read_text())["test_images"] == 2
    status, _, err = lsseg("init", mine)
    assert (status, "mine.yaml exists already" in err) == (1, True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "masks").rename(root / "labels"), "has no masks/"),
        (lambda root: [p.unlink() for p in (root / "images").iterdir()], "there is no image in"),
        (
            lambda root: [p.rename(p.with_suffix(".npy")) for p in (root / "masks").iterdir()],
            "masks holds no image; masks must be images, such as PNG files; their format is not read: 00.npy",
        ),
        (lambda root: [Image.new("RGB", (56, 40)).save(p) for p in (root / "masks").iterdir()], "1 different colours"),
        (lambda root: [Image.new("L", (56, 40)).save(p) for p in (root / "masks").iterdir()], "1 different values"),
    ],
)
def test_what_cannot_be_guessed_is_said_and_nothing_is_written(lsseg, mine, tmp_path, spoil, said):
    spoil(mine)
    status, _, err = lsseg("init", mine)
    assert (status, said in err) == (1, True), err
    assert not (tmp_path / "mine.yaml").exists()
    assert not (mine / "classes.yaml").exists()


def test_masks_saved_as_jpeg_are_told(lsseg, mine):
    for path in (mine / "masks").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    status, _, err = lsseg("init", mine)
    assert status == 1
    assert err.endswith("can be classes: save the masks as PNG, because JPEG changes their values\n")


def test_255_among_other_values_is_said_to_be_taken_for_void(lsseg, tmp_path):
    g = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "cells" / part).mkdir(parents=True)
    for i in range(8):
        name = f"{i}.png"
        Image.fromarray(g.integers(0, 256, (32, 40, 3), np.uint8)).save(tmp_path / "cells" / "images" / name)
        values = g.choice(np.array([0, 128, 255], np.uint8), (32, 40))
        Image.fromarray(values).save(tmp_path / "cells" / "masks" / name)
    status, out, err = lsseg("init", "cells")
    assert status == 0, err
    assert "the value 255 in the masks is treated as void; if it is a class, list it in" in out
    content = yaml.safe_load((tmp_path / "cells" / "classes.yaml").read_text())
    assert content == {"classes": {"background": 0, "class128": 128}, "void": [255]}


def test_classes_may_be_colours_in_the_masks(lsseg, mine):
    for path in (mine / "masks").iterdir():
        inside = np.asarray(Image.open(path)) > 0
        Image.fromarray(np.where(inside[..., None], (128, 64, 130), (0, 0, 0)).astype(np.uint8)).save(path)
    status, out, err = lsseg("init", mine)
    assert status == 0, err
    assert "the masks hold [0, 0, 0], [128, 64, 130]; give the classes their names there" in out
    content = yaml.safe_load((mine / "classes.yaml").read_text())
    assert content == {"classes": {"background": [0, 0, 0], "class1": [128, 64, 130]}, "void": []}
    status, out, _ = lsseg("data", "check", "mine.yaml")
    assert (status, "nothing is wrong" in out) == (0, True)


def test_a_folder_of_other_names_and_without_test_images(lsseg, mine, tmp_path):
    (mine / "masks").rename(mine / "truth")
    for part in ("images", "truth"):
        for split, first in (("train", 0), ("val", 9)):
            (mine / part / split).mkdir()
            for i in range(first, (9, 12)[first > 0]):
                (mine / part / f"{i:02}.png").rename(mine / part / split / f"{i:02}.png")
    status, _, err = lsseg("init", mine)
    assert (status, "name their folder with --masks_folder" in err) == (1, True), err
    status, out, err = lsseg("init", mine, "--masks_folder", "truth")
    assert status == 0, err
    assert "images: 9 train, 3 val;" in out
    assert "there are no test images: the validation images are scored instead" in out
    data = yaml.safe_load((tmp_path / "mine.yaml").read_text())["data"]["init_args"]
    assert (data["masks_folder"], data["test_split"], "images_folder" in data) == ("truth", "val", False)
    assert lsseg("data", "check", "mine.yaml")[0] == 0
    status, out, _ = lsseg("data", "check", mine, "--data.masks_folder", "truth")
    assert (status, "there are no test images; to test on the validation images, set data" in out) == (1, True), out
    status, _, err = lsseg("data", "check", mine, "--data.mask_folder", "truth")
    assert (status, "did you mean masks_folder?" in err) == (1, True), err


@pytest.mark.parametrize("name", ["a #1", "b: [c]", "it's d"])
def test_folders_of_any_name(lsseg, mine, tmp_path, name):
    root = mine.rename(tmp_path / name)
    (root / "classes.yaml").write_text('classes: {"back[/ground]": 0, "cell [mitotic]": 255}\n')
    status, out, err = lsseg("init", root, "--output", "o.yaml")
    assert status == 0, err
    config = yaml.safe_load((tmp_path / "o.yaml").read_text())
    assert config["data"]["init_args"]["root"] == str(root)
    assert config["trainer"]["default_root_dir"] == f"runs/{name}"
    command = next(line for line in out.splitlines() if "lsseg predict" in line)
    assert f"runs/{name}/config.yaml" in shlex.split(command)
    status, out, err = lsseg("data", "check", "o.yaml")
    assert status == 0, err
    assert "back[/ground]" in out
    assert "cell [mitotic]" in out


@pytest.mark.parametrize("valid", ["val", "valid", None])
def test_splits_may_hold_images_and_masks(lsseg, mine, tmp_path, valid):
    for split, first in (("train", 0), (valid, 6), ("test", 9)):
        for part in ("images", "masks") if split else ():
            (mine / split / part).mkdir(parents=True)
            for i in range(first, first + (6 if first == 0 else 3)):
                (mine / part / f"{i:02}.png").rename(mine / split / part / f"{i:02}.png")
    for part in ("images", "masks"):
        shutil.rmtree(mine / part)
    status, out, err = lsseg("init", mine)
    assert status == 0, err
    assert f"images: {6 if valid else 5} train, {3 if valid else 1} val, 3 test; 40×56 pixels" in out
    assert ("mine has no val split: validation uses 1 of its 6 training images" in out) == (valid is None)
    assert lsseg("data", "check", mine)[0] == 0


def test_other_exports_in_cocos_format_are_pointed_out(lsseg, mine):
    (mine / "images").rename(mine / "pictures")
    (mine / "0.json").write_text('{"shapes": []}')  # LabelMe's
    status, _, err = lsseg("init", mine)
    assert (status, err.count("\n")) == (1, 1)
    assert "or name their folder with --images_folder; mine holds the folders masks, pictures" in err
    (mine / "all.json").write_text('{"images": [], "annotations": []}')
    status, _, err = lsseg("init", mine)
    assert (status, err.count("\n")) == (1, 1)
    assert "mine/all.json may be in COCO's format: put it and its images into train/" in err


def test_check_shows_what_is_there_and_all_that_is_wrong(lsseg, mine):
    (mine / "classes.yaml").write_text("classes: {background: 0, cell: 255}\n")
    status, out, err = lsseg("data", "check", mine)
    assert status == 0, err
    assert "nothing is wrong" in out
    assert "40×56" in out
    Image.new("L", (56, 40), 3).save(mine / "masks" / "03.png")
    Image.new("L", (9, 9)).save(mine / "masks" / "05.png")
    (mine / "images" / "07.png").write_bytes(b"no image")
    status, out, _ = lsseg("data", "check", mine)
    assert status == 1
    for said in ("03.png holds the value 3", "05.png is 9×9", "cannot decode", "3 things are wrong"):
        assert out.count(said) == 1, out


def test_check_takes_a_configuration_and_another_root(lsseg, real_data, tmp_path):
    (tmp_path / "a.yaml").write_text("data: {class_path: CarParts, init_args: {root: nowhere}}\n")
    status, out, err = lsseg("data", "check", "a.yaml", "--root", real_data / "car_parts")
    assert status == 0, err
    assert "objects" in out
    for content, said in (("model: 3", "has no `data`"), ("a: [", "is not YAML"), ("data: Nothing", "not a known")):
        (tmp_path / "b.yaml").write_text(content)
        status, _, err = lsseg("data", "check", "b.yaml")
        assert (status, err.count("\n"), said in err) == (1, 1, True), err
    status, _, err = lsseg("data", "check", "nowhere.yaml")
    assert (status, "nowhere.yaml does not exist" in err) == (1, True)


def test_an_overlay_leaves_what_was_missed_visible():
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    labels = np.zeros((6, 9), np.uint8)
    labels[2:, 5:] = 1
    drawn = drawing.overlay(image, labels, [(38, 43, 56), (200, 40, 0)])
    assert np.array_equal(drawn[labels == 0], image[labels == 0])
    assert not np.array_equal(drawn[3:, 6:], image[3:, 6:])


def test_an_overlay_of_many_rows_is_made_in_parts(monkeypatch):
    g = np.random.default_rng(0)
    image, labels = g.integers(0, 256, (50, 30, 3), np.uint8), g.integers(0, 3, (50, 30)).astype(np.uint8)
    whole = drawing.overlay(image, labels, [(1, 2, 3), (200, 0, 0), (0, 200, 9)])
    monkeypatch.setattr(drawing, "ROWS", 7)
    assert np.array_equal(drawing.overlay(image, labels, [(1, 2, 3), (200, 0, 0), (0, 200, 9)]), whole)
