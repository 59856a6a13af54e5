"""PASCAL-Context and Mapillary Vistas in the layouts in which they are distributed."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lsseg import data as official
from lsseg.data.pascal_context import CLASSES
from lsseg.errors import InputError

# The tiny copies have not the official number of images.
MapillaryVistas = partial(official.MapillaryVistas, partial=True)
PascalContext = partial(official.PascalContext, partial=True)


def write_context(root, converted=False):
    """Two training images and one other; the original has 459 labels, numbered here backwards from 459."""
    numbers = {name: 459 - 3 * k for k, name in enumerate(CLASSES)}
    (root / "JPEGImages").mkdir(parents=True)
    lists = root / "ImageSets" / ("SegmentationContext" if converted else "Main")
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2008_1\n2008_2\n" if converted else "2008_1 -1\n2008_2 1\n")
    (lists / "val.txt").write_text("2008_3\n")
    masks = root / ("SegmentationClassContext" if converted else "trainval")
    masks.mkdir()
    if not converted:
        known = {number: name for name, number in numbers.items()}
        (root / "labels.txt").write_text("".join(f"{i}: {known.get(i, f'thing{i}')}\n" for i in range(1, 460)))
    for i in (1, 2, 3):
        Image.new("RGB", (61, 4)).save(root / "JPEGImages" / f"2008_{i}.jpg")
        values = np.array([0, *range(1, 60), 0] if converted else [0, *numbers.values(), 1])
        if converted:
            Image.fromarray(np.tile(values, (4, 1)).astype(np.uint8)).save(masks / f"2008_{i}.png")
        else:
            savemat(masks / f"2008_{i}.mat", {"LabelMap": np.tile(values, (4, 1)).astype(np.uint16)})
    return root


@pytest.mark.parametrize("converted", [False, True])
def test_context_has_59_classes_with_or_without_background(tmp_path, converted):
    root = str(write_context(tmp_path / "context", converted))
    data = PascalContext(root)
    source = data.source("train")
    assert [source.name(i) for i in range(len(source))] == ["2008_1", "2008_2"]
    assert source.read(0)[1][0].tolist() == [*range(60), 0]
    assert data.num_classes == len(data.palette) == 60
    bare = PascalContext(root, background=False)
    assert bare.source("test").read(0)[1][0].tolist() == [255, *range(59), 255]
    assert bare.num_classes == len(bare.palette) == 59


def test_what_the_tables_on_context_train_with(tmp_path, fits):
    tested = fits("kim2019", "data/pascal_context.yaml", root=write_context(tmp_path / "context"), crop_size=[64, 64])
    assert (tested["test_images"], len(tested["classes"])) == (1, 60)


def test_what_context_lacks_is_named(tmp_path):
    root = write_context(tmp_path)
    data = PascalContext(str(root))
    (root / "trainval" / "2008_2.mat").unlink()
    with pytest.raises(InputError, match=r"2008_2\.mat is missing, but .*train\.txt lists it"):
        data.source("train")
    (root / "labels.txt").write_text("1: aeroplane\n")
    with pytest.raises(InputError, match="does not list the label bicycle"):
        data.source("val")
    (root / "labels.txt").unlink()
    with pytest.raises(InputError, match=r"labels\.txt is missing"):
        data.source("val")


def write_vistas(root, folder="v1.2/labels"):
    for split in ("training", "validation"):
        for part in ("images", folder):
            (root / split / part).mkdir(parents=True)
        Image.new("RGB", (66, 4)).save(root / split / "images" / f"{split}_1.jpg")
        Image.fromarray(np.tile(np.arange(66, dtype=np.uint8), (4, 1))).save(root / split / folder / f"{split}_1.png")
    return root


@pytest.mark.parametrize("folder", ["labels", "v1.2/labels"])
def test_vistas_has_65_classes_and_void(tmp_path, folder):
    data = MapillaryVistas(str(write_vistas(tmp_path, folder)))
    assert data.num_classes == len(data.palette) == len(set(data.class_names)) == 65
    assert data.source("train").read(0)[1][0].tolist() == [*range(65), 255]
    assert data.source("test").name(0) == "validation_1"


def test_what_the_tables_on_vistas_train_with(tmp_path, fits):
    tested = fits("zhang2019", "data/vistas.yaml", root=write_vistas(tmp_path / "vistas"), resize=[32, 64])
    assert (tested["test_images"], len(tested["classes"])) == (1, 65)


def test_vistas_without_labels_is_said(tmp_path):
    (tmp_path / "training" / "images").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(tmp_path / "training" / "images" / "a.jpg")
    with pytest.raises(InputError, match=r"training/v1\.2/labels is not a folder"):
        MapillaryVistas(str(tmp_path)).source("train")


def test_a_real_file_of_vistas(tmp_path, real):
    vistas = real("fixtures", "vistas")
    for split in ("training", "validation"):
        for part, name in (("images", "_HnWguqEbRCphUquTMrCCA.jpg"), ("v1.2/labels", "_HnWguqEbRCphUquTMrCCA.png")):
            (tmp_path / split / part).mkdir(parents=True)
            stored = name if part == "images" else name.replace(".png", "_labels.png")
            (tmp_path / split / part / name).symlink_to(vistas / stored)
    data = MapillaryVistas(str(tmp_path))
    _, labels = data.source("val").read(0)
    names = {data.class_names[label] for label in np.unique(labels) if label != 255}
    assert {"Curb", "Fence", "Road", "Sidewalk", "Person", "Vegetation", "Sky", "Building", "Car"} - names <= {
        "Building"
    }
    palette = Image.open(vistas / "_HnWguqEbRCphUquTMrCCA_labels.png").getpalette()
    # The file is of the first release, in which some classes share a colour: those that do not have kept theirs.
    first = [tuple(palette[3 * k : 3 * k + 3]) for k in range(65)]
    own = [k for k in range(65) if first.count(first[k]) == 1 and any(first[k])]
    assert len(own) > 40
    assert [first[k] for k in own] == [data.palette[k] for k in own]
    assert len({*data.palette, (0, 0, 0)}) == 66


@pytest.mark.parametrize("labels", ["labels", "v1.2/labels"])
def test_either_layout_of_vistas_can_be_complete(tmp_path, labels):
    from lsseg.cli.data import _incomplete

    write_vistas(tmp_path, labels)
    known = official.MapillaryVistas.origin
    one = known._replace(counts=dict.fromkeys(known.counts, 1), layout=dict.fromkeys(known.layout, 1))
    assert _incomplete(one, tmp_path) is None
    assert _incomplete(known, tmp_path) == "training/images has 1 files of 18000"


def test_lvis_is_two_files_whatever_lies_beside_them(tmp_path):
    from lsseg.cli.data import _incomplete

    (tmp_path / "val2017").mkdir()
    (tmp_path / "lvis_v1_val.json").touch()
    assert _incomplete(official.LVIS.origin, tmp_path) == "lvis_v1_train.json is missing"
    (tmp_path / "lvis_v1_train.json").touch()
    assert _incomplete(official.LVIS.origin, tmp_path) is None
