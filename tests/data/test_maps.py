import numpy as np
import pytest
from PIL import Image

from lsseg.data import CarParts, NucleiDSB2018, PennFudan
from lsseg.data.nuclei import group_lookalikes, split_groups
from lsseg.errors import InputError


def write_maps(root, folder, count, sizes=((48, 48),)):
    g = np.random.default_rng(0)
    for part in ("images", folder):
        (root / part).mkdir(parents=True)
    for i in range(count):
        size = sizes[i % len(sizes)]
        ids = np.zeros(size, np.uint16)
        ids[5:15, 5:15], ids[20:40, 10:30] = 7, 300  # numbers with gaps
        shade = 30 + 3 * (i // 2)
        image = np.clip(g.normal(shade, 4, (*size, 1)).repeat(3, 2), 0, 255).astype(np.uint8)
        name = f"{'Fudan' if i % 2 else 'PennX'}{i:03d}.png"
        Image.fromarray(image).save(root / "images" / name)
        Image.fromarray(ids).save(root / folder / name)
    return root


def test_penn_fudan_is_split_by_source(tmp_path, masks_of):
    data = PennFudan(str(write_maps(tmp_path, "masks", 40)), num_workers=0)
    names = {s: [data.source(s).name(i) for i in range(len(data.source(s)))] for s in ("train", "val", "test")}
    assert {s: len(own) for s, own in names.items()} == {"train": 28, "val": 4, "test": 8}
    assert len({name for own in names.values() for name in own}) == 40
    assert sum(name.startswith("Penn") for name in names["test"]) == 4
    _, found = data.source("train").read(0)
    assert found.labels.tolist() == [0, 0]
    assert [int(mask.sum()) for mask in masks_of(found)] == [100, 400]


def test_lookalikes_stay_on_one_side(tmp_path):
    root = write_maps(tmp_path, "labels", 60, ((48, 48), (48, 64)))
    data = NucleiDSB2018(str(root), num_workers=0)
    sizes = {s: len(data.source(s)) for s in ("train", "val", "test")}
    assert sum(sizes.values()) == 60
    assert all(sizes.values())
    paths = sorted((root / "images").iterdir())
    modalities, groups = group_lookalikes(paths)
    assert len(set(modalities)) == 2
    side = {data.source(s).name(i): s for s in sizes for i in range(sizes[s])}
    for group in set(groups):
        assert len({side[p.stem] for p, g in zip(paths, groups, strict=True) if g == group}) == 1
    # Two copies of one picture belong together, however their light differs.
    copy = np.asarray(Image.open(paths[0])).astype(int)
    Image.fromarray(np.clip(2 * copy + 20, 0, 255).astype(np.uint8)).save(paths[0].with_name("copy.png"))
    _, groups = group_lookalikes([paths[0], paths[0].with_name("copy.png"), *paths[2:]])
    assert groups[0] == groups[1]


def as_distributed(root, folder):
    """The same data in the layouts in which Penn-Fudan and the nuclei are distributed."""
    other = root / "as-distributed"
    for image in sorted((root / "images").iterdir()):
        ids = np.asarray(Image.open(root / folder / image.name))
        if folder == "masks":
            for part, name in (("PNGImages", image.name), ("PedMasks", f"{image.stem}_mask.png")):
                (other / part).mkdir(parents=True, exist_ok=True)
                source = image if part == "PNGImages" else root / folder / image.name
                (other / part / name).write_bytes(source.read_bytes())
            continue
        own = other / "stage1_train" / image.stem
        (own / "images").mkdir(parents=True)
        (own / "masks").mkdir()
        (own / "images" / image.name).write_bytes(image.read_bytes())
        for value in np.unique(ids)[1:]:
            Image.fromarray((ids == value).astype(np.uint8) * 255).save(own / "masks" / f"{value}.png")
    return other


@pytest.mark.parametrize(("kind", "folder"), [(PennFudan, "masks"), (NucleiDSB2018, "labels")])
def test_the_layouts_in_which_they_are_distributed_are_read(kind, folder, tmp_path, masks_of):
    root = write_maps(tmp_path, folder, 20)
    ours, theirs = (kind(str(r)).source("train") for r in (root, as_distributed(root, folder)))
    assert [ours.name(i) for i in range(len(ours))] == [theirs.name(i) for i in range(len(theirs))]
    for one, two in zip(ours.read(0)[1], theirs.read(0)[1], strict=True):
        assert len(one) == len(two)
    assert sorted(m.sum() for m in masks_of(ours.read(0)[1])) == sorted(m.sum() for m in masks_of(theirs.read(0)[1]))


def test_groups_are_dealt_out_by_modality():
    modalities, groups = ["a"] * 60 + ["b"] * 20, [i // 3 for i in range(60)] + [20 + i for i in range(20)]
    part = split_groups(modalities, groups, [0.6, 0.2, 0.2], seed=1)
    for start, end in ((0, 60), (60, 80)):
        assert np.bincount(part[start:end], minlength=3).tolist() == pytest.approx(
            [0.6 * (end - start), 0.2 * (end - start), 0.2 * (end - start)], abs=3
        )
    assert (part == split_groups(modalities, groups, [0.6, 0.2, 0.2], seed=1)).all()


def test_maps_that_are_none_are_named(tmp_path):
    root = write_maps(tmp_path, "masks", 4)
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(root / "masks" / "PennX000.png")
    source = PennFudan(str(root)).source("train")
    with pytest.raises(InputError, match=r"PennX000\.png holds RGB colours"):
        [source.read(i) for i in range(len(source))]
    for kind, folder in ((PennFudan, "pennfudan"), (NucleiDSB2018, "dsb2018"), (CarParts, "car_parts")):
        with pytest.raises(InputError, match=f"root is not set, and data/{folder} is not a folder"):
            kind().source("train")
    with pytest.raises(InputError, match=r"modality"):
        NucleiDSB2018(str(root), modality="x-ray")


# --- real data, where it is


def test_real_penn_fudan(real):
    data = PennFudan(str(real("pennfudan")))
    sources = [data.source(s) for s in ("train", "val", "test")]
    assert [len(s) for s in sources] == [119, 17, 34]
    assert sum(len(s.read(i)[1].labels) for s in sources for i in range(len(s))) == 423


@pytest.mark.slow
def test_real_nuclei(real):
    data = NucleiDSB2018(str(real("dsb2018")))
    sources = [data.source(s) for s in ("train", "val", "test")]
    assert [len(s) for s in sources] == [429, 84, 151]
    assert sum(len(s.read(i)[1].labels) for s in sources for i in range(len(s))) == 28_986
