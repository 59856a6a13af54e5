"""Loads batches from a source, and images without masks.

A resumed run sees the same batches as an uninterrupted one. The order of an epoch depends only on (seed, epoch), and
the augmentation of an image only on (seed, epoch, index). Nothing depends on the number of workers, and no state has to
be saved.
"""

import copy
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors

from lsseg.data.pixels import ValueRange, image_size, read_image
from lsseg.data.source import IGNORE_INDEX, Source, files_below, hint_at, not_read, same_name
from lsseg.data.transforms import Pair
from lsseg.errors import ArgumentError, InputError, refuse_all


def global_seed() -> int:
    """Return the seed that ``seed_everything`` set for this run, or 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derived_seed(*parts: int) -> int:
    """Return one well-mixed seed made from several small numbers.

    >>> derived_seed(0, 1) != derived_seed(1, 0)
    True
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class Samples(Dataset[dict[str, Any]]):
    """Provides the images and masks of a source, each checked, and transformed with its own random seed.

    Args:
        source: The images and their masks.
        num_classes: C, the number of classes; a label outside 0..C-1 that is not 255 is an error.
        transform: Takes an image (3×H×W uint8) and its mask (H×W), and returns both transformed.
        seed: Seed of the augmentation.

    Items are ``{"image": float 3×H×W in [0, 1], "mask": int64 H×W, "index": int, "name": str}``. The key of an item is
    its index or, in training, (epoch, index). The index ``-1 - i`` gives a copy of item i that has a void mask and the
    index -1; scores ignore it. Such copies fill up the ranks that have fewer images than others.
    """

    def __init__(self, source: Source, num_classes: int, transform: Callable[..., Any], seed: int) -> None:
        self.source = source
        self.num_classes = num_classes
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        real = index if index >= 0 else -1 - index
        image, mask = self.source.read(real)
        check_pair(self.source.name(real), image, mask, self.num_classes)
        pair = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also prepare CUDA's generators, which takes a millisecond.
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, real))
            new_image, new_mask = self.transform(*pair)
        # Plain tensors are faster from here on, because a tv_tensor handles its type in every operation.
        x, y = new_image.as_subclass(Tensor), new_mask.as_subclass(Tensor)
        if index < 0:
            y = torch.full_like(y, IGNORE_INDEX)
        return {"image": x, "mask": y, "index": max(index, -1), "name": self.source.name(real)}


def held_out(count: int, share: float, seed: int, where: Path) -> set[int]:
    """Return the places of the training images that validate, where a data set has no validation split.

    Args:
        count: Number of the training images.
        share: Share of them that is held out; one image at least.
        seed: Seed of the choice.
        where: The folder or file of the images, for the message.

    Raises:
        InputError: If there are too few images, so that none would be left to train on.
    """
    held = max(1, round(count * share))
    if held >= count:
        raise InputError(
            f"{where}: validation would use {held} of its {count} training images, and none would be left to train on; "
            "give a validation split"
        )
    return set(np.random.default_rng(derived_seed(seed)).permutation(count)[:held].tolist())


def check_pair(name: str, image: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], num_classes: int) -> None:
    """Raise ``InputError`` if a mask has another size than its image or holds a label that is no class."""
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise InputError(f"{name}: the image is {height}×{width} but its mask is {mask_height}×{mask_width}")
    check_labels(name, mask, num_classes)


def check_labels(name: str, mask: np.ndarray[Any, Any], num_classes: int) -> None:
    """Raise ``InputError`` if a mask holds a label that is no class."""
    wrong = ((mask < 0) | (mask >= num_classes)) & (mask != IGNORE_INDEX)
    if wrong.any():
        raise InputError(
            f"{name}: the mask holds the label {int(mask[wrong][0])}; "
            f"expected 0..{num_classes - 1}, or {IGNORE_INDEX} for void"
        )


class EpochSampler(Sampler[tuple[int, int]]):
    """Draws a permutation from (seed, epoch) for every epoch, and divides it among the ranks without the remainder.

    Args:
        size: Number of images.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
        position: Called when an epoch begins; returns the epoch's number and how many of this rank's items were used
            before an interruption.
    """

    def __init__(
        self, size: int, seed: int, rank: int, world_size: int, position: Callable[[], tuple[int, int]]
    ) -> None:
        self.size, self.seed, self.rank, self.world_size, self.position = size, seed, rank, world_size, position

    def __len__(self) -> int:
        return self.size // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, used = self.position()
        order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        mine = order[self.rank :: self.world_size][: len(self)]
        for index in mine[used:]:
            yield epoch, int(index)


class EvalSampler(Sampler[int]):
    """Gives each image to one rank; a rank with fewer images also gets a copy, which scores ignore.

    The usual sampler repeats images, which are then counted twice. Without copies, some ranks would wait for others.
    """

    def __init__(self, size: int, rank: int, world_size: int) -> None:
        self.size, self.rank, self.world_size = size, rank, world_size

    def __len__(self) -> int:
        return math.ceil(self.size / self.world_size)

    def __iter__(self) -> Iterator[int]:
        for turn in range(len(self)):
            index = turn * self.world_size + self.rank
            yield index if index < self.size else -1 - index % self.size


class TrainLoader(DataLoader[dict[str, Any]]):
    """Loads training batches without a position of its own, since the trainer counts the batches.

    The empty state tells Lightning that an epoch can be resumed in the middle. ``__iter__`` is a generator, so that the
    workers start at the first batch, after the checkpoint was restored.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, because nothing has to be saved."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state, because nothing was saved."""


class InMemory:
    """Decodes every image of a source once, before training begins, and keeps it in memory.

    The loader processes are forks of this process and share the memory.

    Args:
        source: The source, with ``read``, ``name`` and a length.
        threads: Number of threads that decode.

    Raises:
        InputError: If a file is broken.
        ArgumentError: If the images do not fit into the free memory.
    """

    def __init__(self, source: Any, threads: int) -> None:
        self.name = source.name
        first = source.read(0)
        needed, free = len(source) * _bytes_of(first), _free_memory()
        if needed > free:
            raise ArgumentError(
                f"cache ram needs about {needed / 1e9:.1f} GB for {len(source)} images, but {free / 1e9:.1f} GB are "
                "free: set cache to null"
            )
        with ThreadPoolExecutor(threads) as pool:
            self.items = [first, *pool.map(source.read, range(1, len(source)))]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Any:
        """Return a copy of an image and its annotation, because a transform may write into them."""
        return copy.deepcopy(self.items[index])


def _bytes_of(item: Any) -> int:
    if isinstance(item, np.ndarray):
        return int(item.nbytes)
    parts = item if isinstance(item, tuple) else vars(item).values() if hasattr(item, "__dict__") else ()
    return sum(map(_bytes_of, parts))


def _free_memory() -> float:
    """Return the free memory in bytes, or infinity if the system does not tell it."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024.0 * int(lines["MemAvailable"].split()[0])
    except (OSError, LookupError, ValueError):
        return math.inf


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples into a batch.

    Raises:
        InputError: If the images differ in size; the message names two of them.
    """
    first = samples[0]
    for other in samples[1:]:
        if other["image"].shape != first["image"].shape:
            (h1, w1), (h2, w2) = first["image"].shape[-2:], other["image"].shape[-2:]
            raise InputError(
                f"{first['name']} ({h1}×{w1}) and {other['name']} ({h2}×{w2}) do not fit into one batch: set "
                "data.crop_size (training), data.resize, or data.eval_batch_size=1 (evaluation)"
            )
    return torch.utils.data.default_collate(samples)


class Images(Dataset[dict[str, Any]]):
    """Reads all images of a folder and its subfolders, or one image.

    Items are ``{"image": uint8 3×H×W, "size": (H, W) of the upright image, "path": str}``.

    Args:
        path: The folder or file.
        transform: Takes the image (3×H×W uint8) and a mask of zeros, and returns both transformed.
        value_range: Pixel values that become black and white (see :func:`~lsseg.data.pixels.read_image`).

    Attributes:
        paths: Paths of the files, sorted.
        names: Unique names of the images: their paths below the folder, with the suffix only if two paths differ in
            nothing else.

    Raises:
        ArgumentError: If there is no image at ``path``.
    """

    def __init__(self, path: Path, transform: Pair, value_range: ValueRange | None = None) -> None:
        if not path.exists():
            raise ArgumentError(f"images {path} does not exist; give a folder of images, or one image")
        self.paths = [path] if path.is_file() else files_below(path)
        if not self.paths:
            raise ArgumentError(f"images: there is no image in {path}{hint_at(not_read(path))}")
        self.names = _names(self.paths, path.parent if path.is_file() else path)
        self.transform = transform
        self.value_range = value_range

    def check(self) -> None:
        """Check the headers of all files before the first prediction.

        Raises:
            InputError: If files are missing or are no images; the message lists them.
        """
        problems = []
        for path in self.paths:
            try:
                image_size(path)
            except InputError as error:
                problems.append(str(error))
        refuse_all("data.images", problems)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.from_numpy(read_image(self.paths[index], self.value_range)).permute(2, 0, 1)
        height, width = pixels.shape[-2:]
        nothing = tv_tensors.Mask(torch.zeros(height, width, dtype=torch.uint8))
        image, _ = self.transform(tv_tensors.Image(pixels), nothing)
        return {"image": image.as_subclass(torch.Tensor), "size": (height, width), "path": str(self.paths[index])}


def _names(paths: list[Path], folder: Path) -> list[str]:
    short = [same_name(path.relative_to(folder).with_suffix("").as_posix()) for path in paths]
    double = Counter(short)
    whole = [same_name(path.relative_to(folder).as_posix()) for path in paths]
    return [long if double[name] > 1 else name for name, long in zip(short, whole, strict=True)]
