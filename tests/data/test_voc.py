from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lsseg import data as official
from lsseg.data.voc import voc_palette
from lsseg.errors import InputError

# The tiny copies have not the official number of images.
VOC2012 = partial(official.VOC2012, partial=True)


def write_voc(root, merged=False, sbd=True):
    """Tiny VOC 2012 and SBD as they unpack; the value of every mask is the number of its image."""
    g = np.random.default_rng(0)
    voc = root / "voc2012" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for i in range(1, 9):
        Image.fromarray(g.integers(0, 256, (40, 52, 3), np.uint8)).save(voc / "JPEGImages" / f"{i}.jpg")
    lists = {"train": (1, 2, 3), "val": (4, 5), "trainval": (1, 2, 3, 4, 5)}
    for name, numbers in lists.items():
        (voc / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{i}\n" for i in numbers))
    for i in lists["trainval"]:
        mask = Image.fromarray(np.full((40, 52), i, np.uint8))
        mask.putpalette([x for color in voc_palette(256) for x in color])
        mask.save(voc / "SegmentationClass" / f"{i}.png")
    if merged:
        (voc / "SegmentationClassAug").mkdir()
        for i in (1, 6, 7):
            Image.fromarray(np.full((40, 52), 10 + i, np.uint8)).save(voc / "SegmentationClassAug" / f"{i}.png")
        (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("1\n6\n7\n")
    if sbd:
        inner = root / "sbd" / "benchmark_RELEASE" / "dataset"
        (inner / "cls").mkdir(parents=True)
        for i in (1, 4, 6, 7, 8):
            savemat(inner / "cls" / f"{i}.mat", {"GTcls": {"Segmentation": np.full((40, 52), 10 + i, np.uint8)}})
        (inner / "train.txt").write_text("1\n4\n6\n")
        (inner / "val.txt").write_text("7\n8\n")
    return voc


def test_what_the_tables_on_voc_train_with(tmp_path, fits):
    tested = fits("kim2019", root=write_voc(tmp_path), sbd=str(tmp_path / "sbd"), crop_size=[64, 64])
    assert (tested["test_images"], len(tested["classes"])) == (2, 21)


def test_lsseg_data_looks_where_the_loader_does(tmp_path):
    from lsseg.cli.data import _incomplete, _lacking

    voc = write_voc(tmp_path)
    counts = {"JPEGImages": 8, "SegmentationClass": 5}
    known = official.VOC2012.origin._replace(counts=counts)
    for root in (voc.parent.parent, voc.parent, voc):
        assert _incomplete(known, root) is None
    assert _incomplete(official.VOC2012.origin, voc.parent) == "JPEGImages has 8 files of 17125"
    assert _lacking(known.extra, tmp_path / "voc2012").endswith("has 5 files of 11355")


def values(source):
    return {source.name(i): int(source.read(i)[1][0, 0]) for i in range(len(source))}


def test_official_layout_and_the_augmented_set_from_sbd(tmp_path, monkeypatch):
    write_voc(tmp_path)
    monkeypatch.setenv("LSSEG_DATA", str(tmp_path))
    data = VOC2012()
    assert data.num_classes == 21
    # VOC's own masks come first; what val holds is not trained on.
    assert values(data.source("train")) == {"1": 1, "2": 2, "3": 3, "6": 16, "7": 17, "8": 18}
    assert values(data.source("val")) == values(data.source("test")) == {"4": 4, "5": 5}
    assert values(VOC2012(train_set="train").source("train")) == {"1": 1, "2": 2, "3": 3}
    assert len(VOC2012(train_set="trainval").source("train")) == 5


def test_the_augmented_set_as_others_distribute_it(tmp_path):
    voc = write_voc(tmp_path, merged=True, sbd=False)
    for root in (voc, voc.parent, voc.parent.parent):
        assert values(VOC2012(str(root)).source("train")) == {"1": 1, "6": 16, "7": 17}


def test_a_split_that_is_not_the_official_one_is_refused(tmp_path):
    voc = write_voc(tmp_path)
    message = "the val split in .* has 2 images, but the official one has 1449: get all of it, or set partial to true"
    with pytest.raises(InputError, match=message):
        official.VOC2012(str(voc)).source("val")


def test_what_is_missing_is_named(tmp_path):
    voc = write_voc(tmp_path, sbd=False)
    data = VOC2012(str(voc), sbd=str(tmp_path / "sbd"))
    with pytest.raises(InputError, match=r"trainaug needs SBD \(sbd .* is not a folder"):
        data.source("train")
    (voc / "SegmentationClass" / "5.png").unlink()
    with pytest.raises(InputError, match=r"there is no mask of 5 in .*SegmentationClass"):
        data.source("val")
    (voc / "JPEGImages" / "4.jpg").unlink()
    with pytest.raises(InputError, match=r"4\.jpg is missing"):
        data.source("val")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(InputError, match=r"val\.txt lists no image"):
        data.source("val")
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(InputError, match=r"val\.txt is missing"):
        data.source("val")
    with pytest.raises(InputError, match="holds no folder JPEGImages"):
        VOC2012(str(tmp_path / "voc2012" / "VOCdevkit" / "VOC2012" / "ImageSets")).source("val")


def test_a_broken_mask_of_sbd_is_named(tmp_path):
    voc = write_voc(tmp_path)
    path = tmp_path / "sbd" / "benchmark_RELEASE" / "dataset" / "cls" / "6.mat"
    for content in (b"nothing", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*6\.mat as a mask: it should hold GTcls"):
            values(VOC2012(str(voc), sbd=str(tmp_path / "sbd")).source("train"))
    savemat(path, {"other": np.zeros(3)})
    with pytest.raises(InputError, match=r"6\.mat"):
        values(VOC2012(str(voc), sbd=str(tmp_path / "sbd")).source("train"))


def test_real_files(tmp_path, real):
    root = real("fixtures", "voc2012", "labelme_voc")
    voc = tmp_path / "VOC2012"
    voc.mkdir()
    for folder in ("JPEGImages", "SegmentationClass"):
        (voc / folder).symlink_to(root / folder)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2011_000003\n2011_000006\n2011_000025\n")
    source = VOC2012(str(voc)).source("val")
    labels = set()
    for i in range(3):
        image, mask = source.read(i)
        assert image.shape[:2] == mask.shape
        labels |= set(np.unique(mask).tolist())
    assert labels <= {*range(21), 255}
    assert {0, 15, 255} <= labels  # background, person, void
    palette = Image.open(root / "SegmentationClass" / "2011_000003.png").getpalette()
    assert palette[:63] == [x for color in voc_palette(21) for x in color]
