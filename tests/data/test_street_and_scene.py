"""Cityscapes and ADE20K in the layouts in which they are distributed."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lsseg import data as official
from lsseg.errors import InputError

# The tiny copies have not the official number of images.
ADE20K = partial(official.ADE20K, partial=True)
Cityscapes = partial(official.Cityscapes, partial=True)
CityscapesInstances = partial(official.CityscapesInstances, partial=True)


def save(path, values):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def write_cityscapes(root, ending="labelIds"):
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "frankfurt"), ("train_extra", "augsburg")):
        kind = "gtCoarse" if split == "train_extra" else "gtFine"
        name = f"{city}_000000_000019"
        save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", np.zeros((8, 50, 3)))
        values = np.arange(50) if ending == "labelIds" else np.arange(50) % 19
        values[34:] = 255 if ending == "labelIds" else 3
        save(root / kind / split / city / f"{name}_{kind}_{ending}.png", np.tile(values, (8, 1)))
        save(root / kind / split / city / f"{name}_{kind}_color.png", np.zeros((8, 50, 3)))
    return root


def test_official_numbers_become_training_labels(tmp_path, monkeypatch):
    write_cityscapes(tmp_path / "cityscapes")
    monkeypatch.setenv("LSSEG_DATA", str(tmp_path))
    data = Cityscapes()
    source = data.source("train")
    assert [source.name(i) for i in range(len(source))] == [
        "aachen_000000_000019_leftImg8bit",
        "bochum_000000_000019_leftImg8bit",
    ]
    labels = source.read(0)[1][0]
    expected = np.full(50, 255)
    for label, number in enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)):
        expected[number] = label
    assert labels.tolist() == expected.tolist()
    assert len(data.source("val")) == len(data.source("test")) == 1
    assert len(Cityscapes(train_set="trainval").source("train")) == 3


def test_coarse_annotations_and_training_labels_in_files(tmp_path):
    root = write_cityscapes(tmp_path, "labelTrainIds")
    coarse = Cityscapes(str(root), train_set="train_extra", annotation="coarse")
    assert coarse.source("train").name(0).startswith("augsburg")
    assert coarse.source("val").read(0)[1].max() == 18
    with pytest.raises(InputError, match=r"has coarse annotations only: set annotation coarse"):
        Cityscapes(str(root), train_set="train_extra")


@pytest.mark.parametrize(
    ("paper", "files"),
    [
        ("kim2019", ["data/cityscapes.yaml"]),
        ("zhang2019", ["data/cityscapes.yaml"]),
        ("zhang2019", ["data/cityscapes.yaml", "data/cityscapes_coarse.yaml"]),
    ],
)
@pytest.mark.extra("cityscapes")
@pytest.mark.filterwarnings("ignore:the training split has no pixel of")
def test_what_the_tables_on_cityscapes_train_with(tmp_path, fits, paper, files):
    root = write_cityscapes(tmp_path / "city")
    for ids in root.glob("*/*/*/*labelIds.png"):  # the official scores count objects, too, and know no label 255
        values = np.asarray(Image.open(ids))
        save(ids, values * (values < 34))
        save(str(ids).replace("labelIds", "instanceIds"), values * (values < 34))
    tested = fits(paper, *files, root=root, crop_size=[64, 64])
    assert (tested["test_images"], len(tested["classes"])) == (1, 19)
    assert "official_miou" in tested["scores"]


@pytest.mark.extra("cityscapes")
def test_what_the_tables_on_cityscapes_instances_train_with(tmp_path, fits):
    root = write_cityscapes(tmp_path / "city")
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "frankfurt")):
        ids = np.zeros((8, 50), np.uint16)
        ids[:7, 5:25] = 26000  # official scores leave out objects of less than 100 pixels
        Image.fromarray(ids).save(root / "gtFine" / split / city / f"{city}_000000_000019_gtFine_instanceIds.png")
    tested = fits("homayounfar2020", "cityscapes.yaml", root=root, short_side=64, longest_side=128)
    assert (tested["test_images"], len(tested["classes"])) == (1, 8)
    assert "official_ap" in tested["scores"]


def test_what_cityscapes_lacks_is_named(tmp_path):
    root = write_cityscapes(tmp_path)
    next((root / "gtFine" / "train" / "bochum").glob("*labelIds.png")).unlink()
    with pytest.raises(InputError, match=r"bochum_.*_leftImg8bit\.png has no annotation: expected .*labelIds\.png"):
        Cityscapes(str(root)).source("train")
    next((root / "gtFine" / "val" / "frankfurt").glob("*labelIds.png")).unlink()
    with pytest.raises(InputError, match=r"val holds no annotation \*_gtFine_labelIds\.png"):
        Cityscapes(str(root)).source("val")
    with pytest.raises(InputError, match=r"gtCoarse/train is not a folder; `lsseg data cityscapes`"):
        Cityscapes(str(root), annotation="coarse").source("train")


def test_instances_have_numbers_and_groups_are_crowds(tmp_path):
    root = write_cityscapes(tmp_path)
    ids = np.zeros((8, 50), np.uint16)
    ids[0], ids[1, :9], ids[1, 9:], ids[2, 4], ids[3:5], ids[6] = 7, 26000, 26001, 24003, 24, 29001
    Image.fromarray(ids).save(root / "gtFine" / "val" / "frankfurt" / "frankfurt_000000_000019_gtFine_instanceIds.png")
    data = CityscapesInstances(str(root))
    assert data.class_names == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    _, found = data.source("val").read(0)
    assert [data.class_names[k] for k in found.labels] == ["person", "person", "car", "car"]
    assert found.crowd.tolist() == [True, False, False, False]
    masks = [found.layers[layer] == k + 1 for k, layer in enumerate(found.layer)]
    assert [int(mask.sum()) for mask in masks] == [100, 1, 9, 41]
    with pytest.raises(InputError, match=r"train holds no annotation \*_gtFine_instanceIds\.png"):
        data.source("train")


def test_ade20k_shifts_labels_and_zero_is_void(tmp_path):
    for split in ("training", "validation"):
        save(tmp_path / "images" / split / f"ADE_{split}_1.jpg", np.zeros((8, 151, 3)))
        save(tmp_path / "annotations" / split / f"ADE_{split}_1.png", np.tile(np.arange(151), (8, 1)))
    data = ADE20K(str(tmp_path))
    assert data.num_classes == len(data.palette) == len(set(data.class_names)) == 150
    assert data.source("train").read(0)[1][0].tolist() == [255, *range(150)]
    assert data.source("test").name(0) == "ADE_validation_1"
    assert len(data.source("train")) == 1
    assert len(ADE20K(str(tmp_path), train_set="trainval").source("train")) == 2


@pytest.mark.parametrize("files", [["data/ade20k.yaml"], ["data/ade20k.yaml", "data/ade20k_trainval.yaml"]])
def test_what_the_tables_on_ade20k_train_with(tmp_path, fits, files):
    root = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        save(root / "images" / split / f"ADE_{split}_1.jpg", np.zeros((8, 151, 3)))
        save(root / "annotations" / split / f"ADE_{split}_1.png", np.tile(np.arange(151), (8, 1)))
    tested = fits("zhang2019", *files, root=root, resize=[32, 64])
    assert (tested["test_images"], len(tested["classes"])) == (1, 150)


def test_real_files(tmp_path, real):
    data = ADE20K(str(real("fixtures", "ADEChallengeData2016")))
    _, labels = data.source("val").read(0)
    names = {data.class_names[label] for label in np.unique(labels) if label != 255}
    assert {"sky", "sea"} & names or {"wall", "floor"} & names or {"building", "tree"} & names
    layout = real("fixtures", "synthetic_layouts", "cityscapes_dataset", "train_dataset")
    with pytest.raises(InputError, match="gtFine"):  # this copy keeps the annotations elsewhere
        Cityscapes(str(layout / "imgsFine")).source("val")
    (tmp_path / "leftImg8bit").symlink_to(layout / "imgsFine" / "leftImg8bit")
    (tmp_path / "gtFine").symlink_to(layout / "gtFine")
    source = CityscapesInstances(str(tmp_path)).source("train")
    image, found = source.read(0)
    assert (source.name(0), image.shape) == ("defaultcity_000002_000045_leftImg8bit", (1, 5, 3))
    assert found.layers.shape[1:] == (1, 5)
    with pytest.raises(InputError, match="holds the value 19, which is not a class"):  # its training labels are made up
        Cityscapes(str(tmp_path)).source("train").read(0)
