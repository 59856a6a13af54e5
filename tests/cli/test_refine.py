"""``lsseg refine``: masks to the contours of their images."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lsseg import ChanVeseRefiner
from lsseg.data.pixels import read_mask


def scene(size=(40, 52), shift=3):
    """A bright disc, its mask, and a mask that is off."""
    y, x = np.ogrid[: size[0], : size[1]]
    inside = (y - 20) ** 2 + (x - 25) ** 2 < 110
    image = np.where(inside[..., None], (200, 180, 90), (40, 60, 120)).astype(np.uint8)
    return image, inside, np.roll(inside, shift, 1)


@pytest.fixture
def folders(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for name, values in (("a", (0, 255)), ("sub/b", (3, 7))):
        image, _, off = scene()
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(np.where(off, values[1], values[0]).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def test_folders_by_colour_alone(lsseg, folders, monkeypatch):
    monkeypatch.chdir(folders)
    status, out, err = lsseg("refine", "images", "masks")
    assert status == 0, err
    assert "colours alone move the contours" in out
    _, inside, _ = scene()
    for name, values in (("a", [0, 255]), ("sub/b", [3, 7])):
        found = read_mask(folders / "refined" / "masks" / f"{name}.png")
        assert np.unique(found).tolist() == values
        assert ((found == values[1]) == inside).mean() > 0.99
        assert (folders / "refined" / "steps" / f"{name}.png").stat().st_size > 1000
    status, _, err = lsseg("refine", "images", "masks")
    assert status == 1
    assert "refined exists already: choose another --output" in err


@pytest.mark.parametrize("given", ["probabilities", "logits", "distance"])
def test_a_file_by_a_trained_refiner(lsseg, folders, given):
    _, _, off = scene()
    refiner = ChanVeseRefiner(3, features=4, steps=2, given=given).eval()
    refiner.save(folders / "refiner.pt")
    arguments = [folders / "images/a.jpg", folders / "masks/a.png", "--output", folders / "out"]
    status, out, err = lsseg("refine", *arguments, "--refiner", folders / "refiner.pt")
    assert status == 0, err
    assert "masks refined: 1" in out
    assert read_mask(folders / "out" / "masks" / "a.png").shape == off.shape


def test_images_of_twelve_bits_need_their_range(lsseg, folders):
    image, inside, off = scene()
    Image.fromarray((image[..., 0] * 16.0).astype(np.uint16)).save(folders / "deep.png")
    Image.fromarray(off).save(folders / "mask.png")
    for more in ((), ("--value_range", 0, 4095)):
        status, _, err = lsseg("refine", folders / "deep.png", folders / "mask.png", "--output", folders / "o", *more)
        assert status == 0, err
        found = read_mask(folders / "o" / "masks" / "deep.png") > 0
        assert ((found == inside).mean() > 0.99) == bool(more)
        shutil.rmtree(folders / "o")
    status, _, err = lsseg("refine", folders / "deep.png", folders / "mask.png", "--value_range", 9, 3)
    assert (status, "--value_range must be two numbers, the smaller one first" in err) == (1, True)


def test_a_stop_in_the_middle_leaves_nothing_behind(lsseg, folders):
    whole = (folders / "images/sub/b.jpg").read_bytes()
    (folders / "images/sub/b.jpg").write_bytes(whole[: len(whole) // 2])
    before = sorted(folders.rglob("*"))
    status, _, err = lsseg("refine", folders / "images", folders / "masks", "--output", folders / "out")
    assert (status, "b.jpg" in err) == (1, True), err
    assert sorted(folders.rglob("*")) == before


def test_a_full_disk_is_told_with_the_name_that_the_file_was_to_have(lsseg, folders, small_disk):
    before = sorted(folders.rglob("*"))
    with small_disk(2000):  # enough for a mask, and not for its picture
        status, _, err = lsseg("refine", folders / "images", folders / "masks", "--output", folders / "out")
    assert (status, "File too large: " in err, str(folders / "out/steps/a.png") in err.replace("\n", "")) == (
        1,
        True,
        True,
    )
    assert sorted(folders.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"model: {}"])
def test_a_file_that_is_no_refiner(lsseg, folders, content):
    (folders / "no.pt").write_bytes(content)
    arguments = [folders / "images/a.jpg", folders / "masks/a.png", "--output", folders / "out"]
    status, _, err = lsseg("refine", *arguments, "--refiner", folders / "no.pt")
    assert (status, "no.pt is not a file of ChanVeseRefiner.save" in err) == (1, True), err


def gone(folder):
    (folder / "masks/a.png").unlink()
    return "a.jpg has no mask: expected "


def alone(folder):
    (folder / "images/a.jpg").unlink()
    return "a.png has no image in "


def other_size(folder):
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / "masks/a.png")
    return "a.jpg is 40×52"


def three_values(folder):
    Image.fromarray(np.arange(40 * 52).reshape(40, 52).astype(np.uint8) % 3).save(folder / "masks/a.png")
    return "a.png holds 3 values (0, 1, 2); a mask to be refined has two"


def large_values(folder):
    mask = np.zeros((40, 52), np.int32)
    mask[5:20] = 70000
    Image.fromarray(mask).save(folder / "masks/b.tif")
    (folder / "masks/b.png").unlink(missing_ok=True)
    shutil.copy(folder / "images/a.jpg", folder / "images/b.jpg")
    return "b.tif holds the values 0 and 70000; a mask to be refined has values in 0..65535"


def colours(folder):
    Image.fromarray(np.zeros((40, 52, 3), np.uint8)).save(folder / "masks/a.png")
    return "a.png holds RGB colours"


def cut(folder):
    path = folder / "masks/a.png"
    path.write_bytes(path.read_bytes()[:60])
    return "a.png"


@pytest.mark.parametrize(
    "spoil", [gone, alone, other_size, three_values, large_values, colours, cut], ids=lambda f: f.__name__
)
def test_bad_files_are_named_and_nothing_is_written(lsseg, folders, spoil):
    message = spoil(folders)
    status, _, err = lsseg("refine", folders / "images", folders / "masks", "--output", folders / "out")
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert not (folders / "out").exists()


def test_bad_options_are_named(lsseg, folders):
    image, mask = folders / "images/a.jpg", folders / "masks/a.png"
    torch.save({}, folders / "other.pt")
    ChanVeseRefiner(8).save(folders / "features.pt")
    for arguments, message in (
        ((image, folders / "masks"), "must be two files, or two folders"),
        ((folders / "nowhere.png", mask), "nowhere.png does not exist"),
        ((image, mask, "--mu", "0"), "--mu must be a positive number"),
        ((image, mask, "--reach", "nan"), "--reach must be a positive number"),
        ((image, mask, "--refiner", folders / "none.pt"), "none.pt is not a file"),
        ((image, mask, "--refiner", folders / "other.pt"), "has no Chan-Vese refiner"),
        ((image, mask, "--refiner", mask), "a.png is not a file of ChanVeseRefiner.save"),
        ((image, mask, "--refiner", folders / "features.pt"), "needs features with 8 channels"),
    ):
        status, _, err = lsseg("refine", *arguments, "--output", folders / "out")
        assert status == 1
        assert message in err
        assert not (folders / "out").exists()
