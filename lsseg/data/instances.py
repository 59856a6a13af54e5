"""Defines the objects of an image, each with its own mask, and the data path of instance data sets.

Legend: H×W pixels, n objects, L layers. Objects that overlap lie in different layers; most images need one layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lsseg.data.loading import derived_seed, global_seed
from lsseg.data.module import Cache, DataModule, Split, TestSplit
from lsseg.data.source import list_images, read_image, read_mask
from lsseg.data.transforms import Pair, Resize, ShortSide, instance_eval_transform, instance_train_transform
from lsseg.errors import ArgumentError, InputError, require, require_size


class Instances(NamedTuple):
    """Holds the objects of an image; the mask of object k is ``layers[layer[k]] == k + 1``.

    Attributes:
        layers: Maps of the objects, L×H×W int32, L ≥ 1; 0 is no object.
        layer: Layer of each object, n.
        labels: Label of each object, n, 0..C-1.
        crowd: Whether each object is a crowd, n bool. A crowd is a group whose objects have no separate masks. It is
            not learnt, and the scores ignore it.
    """

    layers: npt.NDArray[np.int32]
    layer: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]


def from_map(ids: npt.NDArray[np.integer], labels: Sequence[int] | npt.NDArray[np.integer]) -> Instances:
    """Return objects that do not overlap from an H×W map; object k has the value k + 1 and the label ``labels[k]``."""
    count = len(labels)
    zeros = np.zeros(count, np.int64)
    return Instances(ids.astype(np.int32)[None], zeros, np.asarray(labels, np.int64), zeros.astype(bool))


def from_masks(
    masks: Sequence[npt.NDArray[np.bool_]], labels: Sequence[int], crowd: Sequence[bool], size: tuple[int, int]
) -> Instances:
    """Return the objects of H×W masks that may overlap; each goes into the first layer in which its pixels are free."""
    layers = [np.zeros(size, np.int32)]
    chosen = []
    for number, mask in enumerate(masks, start=1):
        window = _window(mask)  # Most objects are small, so it is faster to use their windows only.
        inside = mask[window]
        free = (not (layer[window].astype(bool) & inside).any() for layer in layers)
        place = next((i for i, is_free in enumerate(free) if is_free), len(layers))
        if place == len(layers):
            layers.append(np.zeros(size, np.int32))
        layers[place][window][inside] = number
        chosen.append(place)
    parts = (np.array(chosen, np.int64), np.array(labels, np.int64), np.array(crowd, bool))
    return Instances(np.stack(layers), *parts)


def _window(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the smallest window of rows and columns that contains the whole mask."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else (slice(0), slice(0))


class InstanceSource(Protocol):
    """Gives the images and objects of one split, and decodes each only when it is read."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, index: int) -> str:
        """Return the name of an image for tables, file names and error messages."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Return an image, H×W×3 uint8 RGB, and its objects."""


class Pairs:
    """Holds the paths of images and their annotations.

    Args:
        pairs: Paths (image, annotation).
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return the stem of the image file."""
        return self.pairs[index][0].stem


class MapPairs(Pairs):
    """Reads images and maps of objects; every object has its own number, and all have one class."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Decode one image and its map.

        Raises:
            InputError: If a file is corrupt, or the map holds colours or negative numbers.
        """
        image_path, map_path = self.pairs[index]
        ids = read_mask(map_path)
        if ids.min(initial=0) < 0:
            raise InputError(
                f"{map_path} holds the number {ids.min()}; expected 0 for background and 1, 2, … for objects"
            )
        # The numbers may have gaps and be large, so they are replaced by 0, 1, 2, ….
        values, numbered = np.unique(ids, return_inverse=True)
        shift = 0 if values[0] == 0 else 1
        return read_image(image_path), from_map(numbered.reshape(ids.shape) + shift, [0] * (len(values) - 1 + shift))


class MaskFolders(Pairs):
    """Reads images, each with a folder of one mask per object (nonzero on the object); all objects have one class."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Decode one image and its masks.

        Raises:
            InputError: If a file is missing, corrupt or of another size than the image.
        """
        image_path, folder = self.pairs[index]
        image = read_image(image_path)
        size = (image.shape[0], image.shape[1])
        masks = []
        for path in list_images(folder):
            mask = read_mask(path) != 0
            if mask.shape != size:
                raise InputError(f"{path} is {mask.shape[0]}×{mask.shape[1]}, but {image_path} is {size[0]}×{size[1]}")
            masks.append(mask)
        return image, from_masks(masks, [0] * len(masks), [False] * len(masks), size)


class InstanceSamples(Dataset[dict[str, Any]]):
    """Provides the images and objects of a source, each checked, and transformed with its own random seed.

    Args:
        source: The images and their objects.
        num_classes: C, the number of classes.
        transform: Takes an image (3×H×W uint8) and its layers (L×H×W int32), and returns both transformed.
        training: Whether the objects are transformed, too; those that lose all pixels are dropped. In evaluation the
            objects keep the size of the image file, at which predictions are compared with them.

    Items are ``{"image": float 3×H×W in [0, 1], "instances": {...}, "size": (H, W) of the file, "index", "name"}``.
    ``instances`` has the tensors ``layers``, ``layer``, ``labels``, ``crowd`` (see :class:`Instances`) and ``boxes``
    (n×4: left, top, right, bottom edge in pixels). The index ``-1 - i`` gives a copy of image i that has no objects and
    the index -1; scores ignore it.
    """

    def __init__(self, source: InstanceSource, num_classes: int, transform: Pair, training: bool) -> None:
        self.source, self.num_classes, self.transform, self.training = source, num_classes, transform, training
        self.seed = global_seed()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        real = index if index >= 0 else -1 - index
        pixels, found = self.source.read(real)
        self._check(self.source.name(real), pixels, found)
        if index < 0:
            nothing = np.zeros(0, np.int64)
            found = Instances(np.zeros_like(found.layers[:1]), nothing, nothing, nothing.astype(bool))
        layers = torch.from_numpy(found.layers)
        pair = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)), tv_tensors.Mask(layers)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also prepare CUDA's generators, which takes a millisecond.
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, real))
            image, moved = self.transform(*pair)
        return {
            "image": image.as_subclass(Tensor),
            "instances": _with_boxes(moved.as_subclass(Tensor) if self.training else layers, found),
            "size": pixels.shape[:2],
            "index": max(index, -1),
            "name": self.source.name(real),
        }

    def _check(self, name: str, image: npt.NDArray[np.uint8], found: Instances) -> None:
        if image.shape[:2] != found.layers.shape[1:]:
            (height, width), (mask_height, mask_width) = image.shape[:2], found.layers.shape[1:]
            raise InputError(f"{name}: the image is {height}×{width} but its masks are {mask_height}×{mask_width}")
        wrong = found.labels[(found.labels < 0) | (found.labels >= self.num_classes)]
        if len(wrong):
            raise InputError(f"{name}: an object has the label {wrong[0]}; expected 0..{self.num_classes - 1}")


def object_masks(found: dict[str, Tensor]) -> Tensor:
    """Return the mask of every object of a sample's ``instances``, n×H×W bool."""
    number = torch.arange(1, len(found["labels"]) + 1, device=found["layers"].device)
    return found["layers"][found["layer"]] == number[:, None, None]


def _with_boxes(layers: Tensor, found: Instances) -> dict[str, Tensor]:
    """Return the objects that still have a pixel as tensors, with new numbers and their boxes."""
    count = len(found.labels)
    planes = layers.numpy()
    low, high = np.full((count + 1, 2), 2**30), np.full((count + 1, 2), -1)
    for plane in planes:
        y, x = np.nonzero(plane)
        ids = plane[y, x]
        place = np.stack([x, y], 1)
        np.minimum.at(low, ids, place)
        np.maximum.at(high, ids, place)
    kept = np.flatnonzero(high[1:, 0] >= 0)
    number = np.zeros(count + 1, np.int32)
    number[1 + kept] = np.arange(1, len(kept) + 1)
    boxes = np.concatenate([low[1 + kept], high[1 + kept] + 1], 1)
    return {
        "layers": torch.from_numpy(number[planes]),
        "layer": torch.from_numpy(found.layer[kept]),
        "labels": torch.from_numpy(found.labels[kept]),
        "crowd": torch.from_numpy(found.crowd[kept]),
        "boxes": torch.from_numpy(boxes).float(),
    }


def collate_instances(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine samples into a batch of lists, because images may differ in size; only ``index`` is a tensor."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {**batch, "index": torch.tensor(batch["index"])}


class InstanceData(DataModule[InstanceSource]):
    """Is the base of instance data sets: a subclass names its classes and gives an :class:`InstanceSource` per split.

    Args:
        batch_size: Images per training step and process.
        eval_batch_size: Images per validation and test step.
        num_workers: Loader processes of each training process; null takes one for each of its CPU cores, at most 8.
        short_side: Length in pixels to which the shorter side of an image is resized, or the smallest and the largest
            length for a random draw in training (evaluation takes the largest); null keeps each image's own size.
        longest_side: Limit of the longer side in pixels, which needs ``short_side``; null sets no limit.
        crop_size: Height, width of the training crop; null trains on whole images.
        flip: Mirror half of the training images.
        photometric: Strength of the colour jitter in training, 0 to 1.
        images: Input of ``predict``: one image, or a folder of images, which may lie in subfolders.
        test_split: The split that ``test`` scores: ``test``, or ``val`` to choose settings without the test images.
        cache: ``ram`` decodes the training and validation images once in each training process and keeps them in
            memory, which helps if decoding is slower than augmentation; null decodes an image at each use.
    """

    kind = "instances"
    collate = staticmethod(collate_instances)

    def __init__(
        self,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int | None = None,
        short_side: int | tuple[int, int] | None = None,
        longest_side: int | None = None,
        crop_size: tuple[int, int] | None = None,
        flip: bool = True,
        photometric: float = 0.0,
        images: str | None = None,
        test_split: TestSplit = "test",
        cache: Cache | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, images, test_split, cache)
        sides = (short_side, short_side) if isinstance(short_side, int) else short_side
        right = sides is None or 1 <= sides[0] <= sides[1]
        require(right, "short_side", short_side, "must be a length, or the smallest and the largest length")
        if longest_side is not None and sides is None:
            raise ArgumentError("longest_side needs short_side: set short_side, too")
        if longest_side is not None and sides is not None and longest_side < sides[1]:
            raise ArgumentError(f"longest_side {longest_side} must be at least as long as short_side {short_side}")
        require_size("crop_size", crop_size)
        require(0 <= photometric <= 1, "photometric", photometric, "must lie in 0..1")
        self.train_transform = instance_train_transform(sides, longest_side, crop_size, flip, photometric)
        self.size = Resize() if sides is None else ShortSide(sides[1], sides[1], longest_side)
        self.eval_transform = instance_eval_transform(None if sides is None else sides[1], longest_side)

    def samples(self, source: InstanceSource, training: bool) -> InstanceSamples:
        """Return the images and objects of a source; each item is checked and has its own random seed."""
        transform = self.train_transform if training else self.eval_transform
        return InstanceSamples(source, self.num_classes, transform, training)

    def predict_transform(self) -> Pair:
        """Return the resizing of evaluation."""
        return self.size

    def _filled(self, split: Split) -> InstanceSource:
        source = super()._filled(split)
        if not any((~source.read(index)[1].crowd).any() for index in range(len(source))):  # usually needs one image
            raise InputError(f"the {split} split of {type(self).__name__} has no object in its {len(source)} images")
        return source
