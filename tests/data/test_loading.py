from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from lsseg.data import CamVid, FilePairs, FolderSegmentation, SyntheticInstances, SyntheticShapes
from lsseg.data.loading import EpochSampler, EvalSampler, InMemory, Samples, collate
from lsseg.data.source import read_image, read_mask
from lsseg.data.transforms import BLENDS, GREY, Colors, Resize, blend, eval_transform, train_transform, turn_hue
from lsseg.errors import ArgumentError


def batches(data, loader, count=3):
    return [batch for _, batch in zip(range(count), getattr(data, loader)(), strict=False)]


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_the_same_batches_with_any_number_of_workers(loader):
    def take(workers):
        data = SyntheticShapes(
            12, 4, 4, size=(48, 40), batch_size=4, num_workers=workers, scale=(0.5, 2), crop_size=(32, 36)
        )
        return batches(data, loader)

    for one, two in zip(take(0), take(2), strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["mask"], two["mask"])


def test_items_are_floats_in_0_to_1_and_int64_labels():
    (batch,) = batches(SyntheticShapes(4, batch_size=4, num_workers=0), "train_dataloader", 1)
    assert batch["image"].dtype == torch.float32
    assert batch["mask"].dtype == torch.int64
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["image"].shape == (4, 3, 96, 128)
    assert type(batch["image"]) is torch.Tensor


def test_augmentation_depends_on_seed_epoch_and_index_only():
    source = SyntheticShapes(4, size=(48, 48)).source("train")
    transform = train_transform(None, (32, 32), (0.5, 2), True, 0.5)

    def item(seed, key):
        torch.manual_seed(np.random.randint(10**6))  # noqa: NPY002
        return Samples(source, 7, transform, seed)[key]["image"]

    assert torch.equal(item(0, (1, 2)), item(0, (1, 2)))
    assert not torch.equal(item(0, (1, 2)), item(0, (2, 2)))
    assert not torch.equal(item(0, (1, 2)), item(1, (1, 2)))
    before = torch.get_rng_state()
    Samples(source, 7, transform, 0)[0, 1]
    assert torch.equal(torch.get_rng_state(), before)  # and it leaves the global generator alone


def test_splits_share_no_scene():
    data = SyntheticShapes(20, 20, 20, size=(32, 32))
    images = [data.source(split).read(i)[0].tobytes() for split in ("train", "val", "test") for i in range(20)]
    assert len(set(images)) == 60


@pytest.mark.parametrize("size", [(96, 64), (33, 121), (20, 20)])
def test_image_and_mask_move_together(size):
    """The image is a picture of the mask: wherever a label is, its grey must be, whatever the geometry."""
    height, width = size
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[: height // 3] = 1
    mask[:, width // 2 :] += 2
    image = (mask * 60)[None].expand(3, -1, -1)
    transform = train_transform(None, (48, 40), (0.5, 2), True, 0.0)
    agreed, void = [], 0
    for seed in range(20):
        torch.manual_seed(seed)
        x, y = transform(tv_tensors.Image(image.clone()), tv_tensors.Mask(mask.clone()))
        assert x.shape == (3, 48, 40)
        labels = (x[0] * 255 / 60).round()
        agreed.append((labels == y)[y != 255].float().mean())
        assert (x[:, y == 255] * 255).round().eq(GREY).all()  # padding is grey in the image and void in the mask
        void += int((y == 255).sum())
    assert min(agreed) > 0.9
    assert torch.tensor(agreed).mean() > 0.96  # only interpolation along the three edges disagrees
    assert (void > 0) == (min(size) < 80)


COLORS = [("adjust_brightness", 0), ("adjust_contrast", 1), ("adjust_saturation", 2), ("adjust_hue", None)]


@pytest.mark.parametrize(("name", "base"), COLORS)
@pytest.mark.parametrize("size", [(37, 53), (1, 1)])
def test_colours_change_as_torchvision_changes_them(name, base, size):
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 6), size, mode="bicubic")[0].clamp(0, 1)
    image = image.mul(255).byte()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    for change in (-0.6, -0.1, 0.3, 1.0):
        if base is None:
            ours, theirs = turn_hue(pixels, change / 5), functional.adjust_hue(image, change / 5)
        else:
            ours, theirs = blend(pixels, 1 + change, BLENDS[base](pixels)), getattr(functional, name)(image, 1 + change)
        apart = (torch.from_numpy(ours).permute(2, 0, 1).float() - theirs.float()).abs()
        # Eight bits hold a hue to 1.4 degrees.
        assert apart.mean() <= (1.5 if base is None else 1)
        assert apart.max() <= (12 if base is None else 2)


def test_the_strength_bounds_the_change_of_colours():
    image = tv_tensors.Image(torch.full((3, 8, 8), 100, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(8, 8, dtype=torch.uint8))
    means = []
    for seed in range(40):
        torch.manual_seed(seed)
        changed, same = Colors(0.2)(image, mask)
        assert same is mask
        means.append(float(changed.float().mean()))
    assert 79 <= min(means) < 85
    assert 115 < max(means) <= 121
    numbers, _ = Colors(0.2)(tv_tensors.Image(torch.full((3, 8, 8), 0.4)), mask)  # as of somebody's own data set
    assert 0.3 < float(numbers.mean()) < 0.5


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_a_crop_shows_a_part_of_the_resized_image_at_its_scale(scale, axes):
    """Image and mask count rows (or columns), so that a crop says where it lies, and at which scale."""
    height, width = (90, 70) if axes == (0, 1) else (70, 90)
    ramp = torch.arange(90, dtype=torch.uint8)[:, None].expand(90, 70).permute(axes)
    transform = train_transform(None, (24, 24), (scale, scale), False, 0.0)
    starts = []
    for seed in range(30):
        torch.manual_seed(seed)
        x, y = transform(tv_tensors.Image(ramp.expand(3, height, width)), tv_tensors.Mask(ramp.clone()))
        assert x.shape[-2:] == y.shape == (24, 24)
        shown = (255 * x[0]).permute(axes)[:, 0]
        assert (shown - y.permute(axes)[:, 0]).abs().max() <= 0.5 + 0.5 / min(scale, 1)
        assert abs(float(shown[-2] - shown[1]) / 21 * scale - 1) < 0.06
        starts.append(float(shown[0]))
    longest = 90 - 24 / scale
    assert min(starts) < 0.2 * longest
    assert max(starts) > 0.8 * longest


def test_resizing_does_not_shift_the_mask():
    """A centred square stays centred; sampling at corners instead of centres would add a row on one side."""
    mask = torch.zeros(39, 39, dtype=torch.uint8)
    mask[11:28, 11:28] = 1
    _, small = Resize((13, 13))(tv_tensors.Image(torch.zeros(3, 39, 39, dtype=torch.uint8)), tv_tensors.Mask(mask))
    rows = small.any(1).nonzero()
    assert int(rows.min()) + int(rows.max()) == 12


def test_evaluation_changes_nothing_but_the_type():
    image, mask = SyntheticShapes(1, size=(37, 53)).source("test").read(0)
    item = Samples(SyntheticShapes(1, size=(37, 53)).source("test"), 7, eval_transform(None), 0)[0]
    assert torch.equal((item["image"] * 255).round().byte(), torch.from_numpy(image).permute(2, 0, 1))
    assert torch.equal(item["mask"], torch.from_numpy(mask).long())


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7, 12])
def test_evaluation_counts_every_image_once_on_equal_ranks(size, world):
    shares = [list(EvalSampler(size, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for i in share if i >= 0) == list(range(size))
    padding = [i for share in shares for i in share if i < 0]
    source = SyntheticShapes(test_images=size, size=(32, 32)).source("test")
    for index in padding:
        item = Samples(source, 7, eval_transform(None), 0)[index]
        assert item["index"] == -1
        assert (item["mask"] == 255).all()


def test_what_is_predicted_is_dealt_out_to_the_processes(own_folder):
    """Each image once, whatever their number: nothing is reduced over processes, so shares may differ."""
    data = FolderSegmentation(str(own_folder), images=str(own_folder / "images"), num_workers=0)
    dealt = []
    for rank in range(3):
        data.trainer = SimpleNamespace(world_size=3, global_rank=rank)
        dealt.append([path for batch in data.predict_dataloader() for path in batch["path"]])
    assert [len(paths) for paths in dealt] == [3, 3, 2]
    data.trainer = None
    assert sorted(path for paths in dealt for path in paths) == [b["path"][0] for b in data.predict_dataloader()]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_order_is_a_permutation_by_epoch_and_can_start_in_the_middle(world):
    def deal(epoch, start=0):
        shares = []
        for rank in range(world):
            sampler = EpochSampler(13, 5, rank, world, lambda: (epoch, start))
            shares.append(list(sampler))
        return shares

    shares = deal(2)
    assert {epoch for share in shares for epoch, _ in share} == {2}
    dealt = [index for share in shares for _, index in share]
    assert len(set(dealt)) == len(dealt) == 13 // world * world
    assert deal(3) != shares
    assert [share[3:] for share in shares] == deal(2, 3)


def test_sizes_that_do_not_fit_are_named():
    small, large = ({"image": torch.zeros(3, n, n), "name": f"n{n}"} for n in (4, 5))
    with pytest.raises(ValueError, match=r"n4 \(4×4\) and n5 \(5×5\) do not fit into one batch"):
        collate([small, large])


def test_camvid_layout_classes_and_sequences(camvid):
    data = CamVid(str(camvid))
    assert (len(data.source("train")), len(data.source("val")), len(data.source("test"))) == (4, 1, 2)
    assert data.num_classes == len(data.palette) == 11
    assert data.class_names[:3] == ("sky", "building", "pole")
    image, mask = data.source("train").read(0)
    assert image.shape == (48, 60, 3)
    raw = read_mask(camvid / "trainannot" / "0001TP_1.png")
    assert (mask[raw == 11] == 255).all()
    assert (mask[raw != 11] == raw[raw != 11]).all()
    only = CamVid(str(camvid), test_sequence="Seq05VD").source("test")
    assert [only.name(i) for i in range(len(only))] == ["Seq05VD_7"]


def test_own_folder_maps_values_and_splits(own_folder):
    data = FolderSegmentation(str(own_folder), val_fraction=0.25, test_fraction=0.25)
    assert data.class_names == ("ground", "cell")
    assert data.palette[1] == (9, 9, 9)
    splits = {split: data.source(split) for split in ("train", "val", "test")}
    names = {split: {source.name(i) for i in range(len(source))} for split, source in splits.items()}
    assert [len(names[split]) for split in ("train", "val", "test")] == [4, 2, 2]
    assert len(set.union(*names.values())) == 8
    _, mask = splits["train"].read(0)
    assert set(np.unique(mask)) <= {0, 1, 255}
    (own_folder / "train.txt").write_text("photo 1\n\nphoto 2\n")
    (own_folder / "val.txt").write_text("photo 3\n")
    assert len(FolderSegmentation(str(own_folder)).source("train")) == 2
    with pytest.raises(ValueError, match=r"test.txt is missing: write all"):
        FolderSegmentation(str(own_folder)).source("test")
    (own_folder / "test.txt").write_text("photo 99\n")
    with pytest.raises(ValueError, match=r"names 'photo 99', but .* has no image of this name"):
        FolderSegmentation(str(own_folder)).source("test")
    for kind in ("images", "masks"):
        for split in ("train", "val", "test"):
            (own_folder / kind / split).mkdir()
        for path in list((own_folder / kind).glob("photo*")):
            path.rename(own_folder / kind / ("val" if "3" in path.stem else "train") / path.name)
    assert len(FolderSegmentation(str(own_folder)).source("train")) == 7


def test_grey_and_16_bit_images(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((4, 5), 77, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 5), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 5, 4), 9, np.uint8)).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[77] * 3] * 5] * 4
    assert read_image(tmp_path / "deep.png").max() == read_image(tmp_path / "deep.png").min() == 255
    assert read_image(tmp_path / "alpha.png").shape == (4, 5, 3)


def test_loader_processes_are_as_many_as_the_cores_that_a_process_has(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    data = SyntheticShapes(num_workers=None)
    assert data.workers() == 8
    data.trainer = SimpleNamespace(num_devices=4)
    assert data.workers() == 3
    data.num_workers = 0
    assert data.workers() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_memory_are_the_same_and_are_decoded_once(own_folder, workers, monkeypatch):
    options = {"val_fraction": 0.3, "test_fraction": 0, "batch_size": 2, "num_workers": workers, "crop_size": (16, 16)}
    plain, kept = (FolderSegmentation(str(own_folder), cache=cache, **options) for cache in (None, "ram"))
    read, names = FilePairs.read, []
    monkeypatch.setattr(FilePairs, "read", lambda self, i: names.append(self.name(i)) or read(self, i))
    theirs = [(kept.train_dataloader(), kept.val_dataloader())] * 2
    assert sorted(names) == sorted(plain.source("train").names + plain.source("val").names)
    for loaders in theirs:
        for one, other in zip((plain.train_dataloader(), plain.val_dataloader()), loaders, strict=True):
            del names[:]
            found = list(other)
            assert not names
            for a, b in zip(one, found, strict=True):
                assert torch.equal(a["image"], b["image"])
                assert torch.equal(a["mask"], b["mask"])


def test_what_is_written_into_an_image_in_memory_is_gone_the_next_time():
    source = InMemory(SyntheticShapes(2, 1, 1, size=(16, 16)).source("train"), 1)
    image, mask = source.read(1)
    image[:], mask[:] = 0, 0
    assert source.read(1)[0].any()
    assert len(source) == 2


def test_more_images_than_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr("lsseg.data.loading._free_memory", lambda: 1000.0)
    data = SyntheticInstances(4, 1, 1, size=(64, 64), cache="ram")
    with pytest.raises(ArgumentError, match=r"^cache ram needs about 0\.0 GB for 4 images, but 0\.0 GB are free"):
        data.train_dataloader()
