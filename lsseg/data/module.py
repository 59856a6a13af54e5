"""Defines the bases of all data sets: the loaders, samplers and checks, and the base of semantic data sets."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lsseg.data.loading import EpochSampler, EvalSampler, Images, InMemory, Samples, TrainLoader, collate, global_seed
from lsseg.data.pixels import ValueRange
from lsseg.data.root import Origin
from lsseg.data.source import Source
from lsseg.data.transforms import Pair, Resize, eval_transform, train_transform
from lsseg.errors import ArgumentError, InputError, require, require_size

Split = Literal["train", "val", "test"]
TestSplit = Literal["val", "test"]
Cache = Literal["ram"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Color = tuple[int, int, int]
MOST_WORKERS = 8  # upper limit if num_workers is null
Kind = Literal["semantic", "instances"]


class Named(Protocol):
    """Declares the methods that the loaders need of a source."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, index: int) -> str:
        """Return the name of an image."""


S = TypeVar("S", bound=Named)


class DataModule(pl.LightningDataModule, ABC, Generic[S]):
    """Provides the loaders, samplers and checks of all data sets, as their base class.

    Args:
        batch_size: Images per training step and process.
        eval_batch_size: Images per validation and test step.
        num_workers: Loader processes of each training process; null takes one for each of its CPU cores, at most 8.
        images: Input of ``predict``: one image, or a folder of images, which may lie in subfolders.
        test_split: The split that ``test`` scores: ``test``, or ``val`` to choose settings without the test images.
        cache: ``ram`` decodes the training and validation images once in each training process and keeps them in
            memory, which helps if decoding is slower than augmentation; null decodes an image at each use.
    """

    kind: ClassVar[Kind]
    origin: ClassVar[Origin | None] = None  # only of data sets that `lsseg data` lists
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    file_values: ClassVar[tuple[int, ...] | None] = None  # class numbers in files for the evaluation server
    value_range: ValueRange | None = None  # values of black and white; None is the range of the files' format

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int | None,
        images: str | None,
        test_split: TestSplit,
        cache: Cache | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            require(value >= 1, key, value, "must be at least 1")
        require(num_workers is None or num_workers >= 0, "num_workers", num_workers, "must be at least 0")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.images = images
        self.test_split: TestSplit = test_split
        self.cache: Cache | None = cache
        self._kept: dict[Split, S] = {}

    @property
    def num_classes(self) -> int:
        """Return C, the number of classes without void."""
        return len(self.class_names)

    def source(self, split: Split) -> S:
        """Return the images and annotations of a split."""
        raise InputError(f"{type(self).__name__} must define the method source, which returns its {split} split")

    @abstractmethod
    def samples(self, source: S, training: bool) -> Dataset[dict[str, Any]]:
        """Return the images and annotations of a source, transformed for training or for evaluation."""

    @staticmethod
    @abstractmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Combine samples into a batch."""

    @abstractmethod
    def predict_transform(self) -> Pair:
        """Return the transform of an image to predict; it keeps bytes, which the task later turns into numbers."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of shuffled, augmented training batches; it drops an incomplete last batch."""
        source = self._decoded("train")
        world, rank = self._place()
        per_epoch = len(source) // world // self.batch_size
        if per_epoch == 0:
            raise ArgumentError(
                f"batch_size {self.batch_size} on {world} process(es) is more than the "
                f"{len(source)} images of the training split"
            )

        def position() -> tuple[int, int]:
            if not self.trainer:
                return 0, 0
            # The trainer's own count of epochs is one too low after a run is resumed twice at the end of an epoch.
            done = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed
            epoch, batches = divmod(int(done), int(self.trainer.num_training_batches))
            return epoch, batches * self.batch_size

        seed = global_seed()
        return TrainLoader(
            self.samples(source, training=True),
            self.batch_size,
            sampler=EpochSampler(len(source), seed, rank, world, position),
            drop_last=True,
            **self._options(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the validation split, in a fixed order and without random transforms."""
        return self._eval_loader(self._decoded("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the split to test, in a fixed order and without random transforms."""
        return self._eval_loader(self._filled(self.test_split))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of ``data.images``, one image at a time; the processes share the images."""
        images = self.predict_images()
        world, rank = self._place()
        own = range(rank, len(images), world)
        return DataLoader(images, batch_size=1, sampler=own, num_workers=self.workers())

    def predict_images(self) -> Images:
        """Return the images of ``data.images``."""
        if self.images is None:
            raise InputError("predict needs data.images: a folder of images, or one image")
        return Images(Path(self.images), self.predict_transform(), self.value_range)

    def check(self, *splits: Split) -> None:
        """Raise ``InputError`` for a split that is empty or lacks a file, before training begins."""
        for split in splits:
            self._filled(split)

    def setup(self, stage: str) -> None:
        """Check the splits that the stage needs, or the images to predict."""
        if stage == "predict":
            self.predict_images().check()
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        needed["test"] = (self.test_split,)
        self.check(*needed.get(stage, ()))

    def _eval_loader(self, source: S) -> DataLoader[Any]:
        world, rank = self._place()
        return DataLoader(
            self.samples(source, training=False),
            self.eval_batch_size,
            sampler=EvalSampler(len(source), rank, world),
            **self._options(),
        )

    def workers(self) -> int:
        """Return the number of loader processes of this process."""
        if self.num_workers is not None:
            return self.num_workers
        processes = self.trainer.num_devices if self.trainer else 1  # processes that share the cores of this machine
        return min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // processes))

    def _place(self) -> tuple[int, int]:
        """Return the number of processes that share the data, and the rank of this process."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _filled(self, split: Split) -> S:
        source = self.source(split)
        lacking = [name for name in ("__len__", "name", "read") if not hasattr(source, name)]
        if lacking:
            raise InputError(
                f"{type(self).__name__}.source gives a {type(source).__name__} without {' and '.join(lacking)}; "
                "lsseg.data.source.Source lists what it must have"
            )
        if len(source) == 0:
            raise InputError(f"the {split} split of {type(self).__name__} is empty")
        return source

    def _decoded(self, split: Split) -> S:
        """Return a split; if ``cache`` is ``ram``, its decoded images are in memory."""
        if self.cache is None:
            return self._filled(split)
        if split not in self._kept:
            self._kept[split] = InMemory(self._filled(split), max(1, self.workers()))  # type: ignore[assignment]
        return self._kept[split]

    def _options(self) -> dict[str, Any]:
        workers = self.workers()
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": self.collate,
        }


class SegmentationData(DataModule[Source]):
    """Is the base of the semantic data sets: a subclass names its classes and gives a :class:`Source` for each split.

    Args:
        batch_size: Images per training step and process.
        eval_batch_size: Images per validation and test step; more than 1 needs images of the same size.
        num_workers: Loader processes of each training process; null takes one for each of its CPU cores, at most 8.
        resize: Resize every image to height, width, for training and evaluation; null keeps each image's own size.
        crop_size: Height, width of the training crop; null trains on whole images.
        scale: Smallest and largest random scale in training; a scale other than 1 needs a crop_size.
        flip: Mirror half of the training images.
        photometric: Strength of the colour jitter in training, 0 to 1.
        images: Input of ``predict``: one image, or a folder of images, which may lie in subfolders.
        test_split: The split that ``test`` scores: ``test``, or ``val`` to choose settings without the test images.
        cache: ``ram`` decodes the training and validation images once in each training process and keeps them in
            memory, which helps if decoding is slower than augmentation; null decodes an image at each use.
    """

    kind = "semantic"
    collate = staticmethod(collate)

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int | None = None,
        resize: tuple[int, int] | None = None,
        crop_size: tuple[int, int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        flip: bool = True,
        photometric: float = 0.25,
        images: str | None = None,
        test_split: TestSplit = "test",
        cache: Cache | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, images, test_split, cache)
        for key, size in (("resize", resize), ("crop_size", crop_size)):
            require_size(key, size)
        require(0 < scale[0] <= scale[1], "scale", list(scale), "must be two positive numbers, the smaller one first")
        require(0 <= photometric <= 1, "photometric", photometric, "must lie in 0..1")
        self.resize = resize
        self.train_transform = train_transform(resize, crop_size, scale, flip, photometric)

    def samples(self, source: Source, training: bool) -> Samples:
        """Return the images and masks of a source; each item is checked and has its own random seed."""
        transform = self.train_transform if training else eval_transform(self.resize)
        return Samples(source, self.num_classes, transform, global_seed())

    def predict_transform(self) -> Pair:
        """Return the resizing of training and evaluation, without augmentation."""
        return Resize(self.resize)
