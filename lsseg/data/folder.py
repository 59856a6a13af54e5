"""Reads a user's own images and masks, so that a new data set needs no Python code."""

import functools
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lsseg.data.classes import compare_classes, look_at_pairs, read_classes
from lsseg.data.loading import derived_seed, held_out
from lsseg.data.module import SPLITS, SegmentationData, Split
from lsseg.data.pixels import ValueRange, check_value_range
from lsseg.data.root import existing_root
from lsseg.data.source import (
    FilePairs,
    common_suffix,
    files_below,
    images_below,
    matched,
    name_below,
    same_name,
    some_of,
    without_image,
)
from lsseg.errors import ArgumentError, InputError, refuse_all

NAMES: dict[Split, tuple[str, ...]] = {  # of splits' folders and lists, in any case of letters
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}


def by_split(names: Iterable[str]) -> dict[Split, str]:
    """Return the name of each split's folder or list; splits without one are left out.

    >>> by_split(["Training", "valid", "extra"])
    {'train': 'Training', 'val': 'valid'}
    """
    there = {name.lower(): name for name in sorted(names)}
    found = {split: [there[name] for name in known if name in there] for split, known in NAMES.items()}
    return {split: own[0] for split, own in found.items() if own}


class FolderSegmentation(SegmentationData):
    """Reads ``images/``, ``masks/`` (index or palette PNG of the same names) and ``classes.yaml`` in one folder.

    ``classes.yaml`` lists the class names in the order of their labels::

        classes: [background, cell, nucleus]

    or it gives each class its value in the mask files and its display colour, or its colour in the mask files::

        classes:
          background: {value: 0, color: [0, 0, 0]}    # or background: 0
          cell: {value: 128, color: [220, 60, 60]}    # or cell: [220, 60, 60], if the masks are coloured
        void: [255]          # values (or colours) that are void; the value 255 is void unless it is a class

    The splits are subfolders: ``images/train``, ``images/val``, ``images/test`` (and the same under ``masks/``), or
    ``train/images``, ``train/masks`` and so on. Other names: ``Train``, ``training``, ``valid``, ``validate``
    and the like. Without subfolders, the lists ``train.txt``, ``val.txt``, ``test.txt`` give the splits, one name per
    line. Without lists, the split is random and seeded. If subfolders or lists lack
    ``val``, a share of ``train`` validates. Images may lie in deeper folders, and their masks in folders of the same
    names.

    Args:
        root: The folder.
        val_fraction: Share that validates: of all images in a random split, or of ``train`` if ``val`` is lacking.
        test_fraction: Share of the images of a random split that is held out for the test.
        split_seed: Seed of the random split; it does not depend on the run's seed.
        images_folder: Name of the images' folder, below the root.
        masks_folder: Name of the masks' folder, below the root.
        mask_suffix: Text that the masks' names add to the images' names, such as ``_mask``; null finds it.
        value_range: Pixel values that become black and white, such as ``[0, 4095]`` of a 12-bit camera; null takes the
            range of the files' format (0..65535 for 16 bits, 0..1 for floating point numbers).
        **options: See :class:`SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        images_folder: str = "images",
        masks_folder: str = "masks",
        mask_suffix: str | None = None,
        value_range: ValueRange | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ArgumentError("val_fraction and test_fraction must be at least 0 and sum to less than 1")
        check_value_range(value_range)
        self.root = existing_root(root, root, "give the folder that holds images/, masks/ and classes.yaml")
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.images_folder, self.masks_folder = self.root / images_folder, self.root / masks_folder
        self._names = images_folder, masks_folder
        self.mask_suffix = mask_suffix
        self.value_range = value_range
        self.classes = read_classes(self.root / "classes.yaml")
        self.class_names, self.palette = self.classes.names, self.classes.palette
        self._checked: set[Split] = set()
        self._said_held_out, self._said_twice = False, set[tuple[str, str]]()

    @property
    def has_test(self) -> bool:
        """Return whether there is a test split; subfolders, lists and random splits may lack it."""
        return "test" in (self._parts() or self._lists() or (SPLITS if self.test_fraction else SPLITS[:2]))

    def source(self, split: Split) -> FilePairs:
        """Return the pairs of a split; raise ``InputError`` if folders, masks or listed images are missing."""
        found = self._pairs(split)
        return FilePairs(list(found.values()), self.classes.labels, list(found), self.classes.colors, self.value_range)

    def check(self, *splits: Split) -> None:
        """Check all files of the splits before training begins; warn about absent classes and shared images.

        Raises:
            InputError: If a mask is missing, or if masks have other sizes or values of no class; the message names the
                first missing mask, or lists the problems of all masks.
        """
        self._refuse_empty(splits)
        super().check(*splits)
        new = [split for split in splits if split not in self._checked]
        found = {split: look_at_pairs(self.source(split)) for split in new}
        refuse_all(f"the data in {self.root}", [problem for _, problems in found.values() for problem in problems])
        if "train" in new:
            compare_classes(found["train"][0], self.classes, self.root / "classes.yaml")
            self._compare_lists()
            self._warn_of_unused_files()
        self._checked.update(new)

    def _refuse_empty(self, splits: Sequence[Split]) -> None:
        """Refuse a random split whose shares leave a part without an image."""
        for split in () if self._parts() or self._lists() else splits:
            if not self._listed(split, images := images_below(self.images_folder)):
                raise InputError(
                    f"{self.images_folder} has {len(images)} image(s), of which data.val_fraction "
                    f"{self.val_fraction:g} and data.test_fraction {self.test_fraction:g} leave none for {split}"
                )

    def _pairs(self, split: Split) -> dict[str, tuple[Path, Path]]:
        parts = self._parts()
        if not parts:
            images = self._listed(split, images_below(self.images_folder))
            return matched(images, self.masks_folder, self._suffix)
        if "val" not in parts and split in ("train", "val"):
            folder, masks = self._folders("train")
            kept, held = self._held_out(images_below(folder))
            return matched(held if split == "val" else kept, masks, self._suffix)
        if split not in parts:
            hint = "; to test on the validation images, set data.test_split to val" if split == "test" else ""
            raise InputError(f"{self._folders(split)[0]} is not a folder: there are no {split} images{hint}")
        folder, masks = self._folders(parts[split])
        return matched(images_below(folder), masks, self._suffix)

    @functools.cached_property
    def _suffix(self) -> str:
        """Return the text that the masks' names add to the images' names."""
        if self.mask_suffix is not None:
            return self.mask_suffix
        images, masks = (
            [
                f"{place}/{name_below(folder, path)}"
                for place, folder in enumerate(folders)
                for path in files_below(folder)
            ]
            for folders in zip(*self._all_folders(), strict=True)
        )
        return common_suffix(images, masks, self.masks_folder)

    def _all_folders(self) -> list[tuple[Path, Path]]:
        """Return all folders of images, each with that of its masks."""
        return [self._folders(part) for part in self._parts().values()] or [(self.images_folder, self.masks_folder)]

    def _folders(self, part: str) -> tuple[Path, Path]:
        """Return a split's folders of images and masks: ``images/train``, ``masks/train``, or ``train/images``, …."""
        if self.images_folder.is_dir():
            return self.images_folder / part, self.masks_folder / part
        images, masks = self._names
        return self.root / part / images, self.root / part / masks

    def _parts(self) -> dict[Split, str]:
        """Return the names of the subfolders by split; the result is empty if no split has a subfolder."""
        place = self.images_folder if self.images_folder.is_dir() else self.root
        return by_split(path.name for path in place.iterdir() if self._folders(path.name)[0].is_dir())

    def _lists(self) -> dict[Split, Path]:
        """Return the existing lists, by split."""
        lists = {path.stem: path for path in self.root.iterdir() if path.suffix == ".txt" and path.is_file()}
        return {split: lists[name] for split, name in by_split(lists).items()}

    def _listed(self, split: Split, images: dict[str, Path]) -> dict[str, Path]:
        lists = self._lists()
        if split in lists:
            listed = self._named(lists[split], images)
            return self._held_out(listed)[0] if split == "train" and "val" not in lists else listed
        if lists:
            if split == "val" and "train" in lists:
                return self._held_out(self._named(lists["train"], images))[1]
            hint = "; or set data.test_split to val" if split == "test" else ""
            raise InputError(
                f"{self.root / f'{split}.txt'} is missing: write all of train.txt, val.txt and test.txt, or none{hint}"
            )
        order = np.random.default_rng(derived_seed(self.split_seed)).permutation(len(images))
        # Every share above 0 gets at least one image, if there are three or more.
        least = int(len(images) >= 3)
        first, second = (
            max(least, round(len(images) * share)) if share else 0 for share in (self.val_fraction, self.test_fraction)
        )
        chosen = {"val": order[:first], "test": order[first : first + second], "train": order[first + second :]}
        names = list(images)
        return {names[i]: images[names[i]] for i in sorted(chosen[split])}

    def _held_out(self, images: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
        """Divide training images into those that train and a share that validates; warn about this once."""
        held = held_out(len(images), self.val_fraction, self.split_seed, self.root)
        names = list(images)
        if not self._said_held_out:
            warnings.warn(
                f"{self.root} has no val split: validation uses {len(held)} of its {len(images)} training images "
                f"(data.val_fraction {self.val_fraction:g})",
                stacklevel=2,
            )
            self._said_held_out = True
        kept, taken = ({n: images[n] for i, n in enumerate(names) if (i in held) == out} for out in (False, True))
        return kept, taken

    def _named(self, listing: Path, images: dict[str, Path]) -> dict[str, Path]:
        """Return the images that a list names by stem, file name or path, in the order of the list."""
        by_stem: dict[str, list[str]] = {}
        for name in images:
            by_stem.setdefault(name.rpartition("/")[2], []).append(name)
        chosen: dict[str, Path] = {}
        problems = []
        for line in listing.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            said = same_name(line.strip())
            if not said:
                continue
            names = self._meant(said, images, by_stem)
            if len(names) != 1:
                wrong = f"several images of this name: {', '.join(names)}" if names else "no image of this name"
                problems.append(f"{listing} names {line.strip()!r}, but {self.images_folder} has {wrong}")
                continue
            if names[0] in chosen and (listing.name, names[0]) not in self._said_twice:
                self._said_twice.add((listing.name, names[0]))
                warnings.warn(f"{listing} names {names[0]} twice; it is used once", stacklevel=2)
            chosen[names[0]] = images[names[0]]
        refuse_all(str(listing), problems)
        return chosen

    @staticmethod
    def _meant(said: str, images: dict[str, Path], by_stem: dict[str, list[str]]) -> list[str]:
        """Return the names of the images that a line means: a name, or a path that ends in theirs or begins as theirs.

        The line may be the path on another machine, and it may lack the folders of the image.
        """
        path = PurePosixPath(said)
        for name in (said, path.with_suffix("").as_posix()):
            if name in images:
                return [name]
        for known, line in ((by_stem.get(path.name, []), path), (by_stem.get(path.stem, []), path.with_suffix(""))):
            longer = [name for name in known if f"/{name}".endswith(f"/{line}")]
            shorter = [name for name in known if f"/{line}".endswith(f"/{name}")]
            if longer or shorter:
                return longer or [max(shorter, key=len)]
        return []

    def _warn_of_unused_files(self) -> None:
        folders = self._all_folders()
        for images, masks in folders:
            alone = without_image(images_below(images), masks, self._suffix)
            if alone:
                said = f"{masks}: {len(alone)} mask(s) have no image and are not used: {some_of(alone)}"
                warnings.warn(said, stacklevel=2)
        used = {path for images, _ in folders for path in files_below(images)}
        others = [str(path.relative_to(self.root)) for path in files_below(self.images_folder) if path not in used]
        if others:
            said = f"{self.images_folder}: {len(others)} image(s) are in no split's folder and are not used: "
            warnings.warn(said + some_of(others), stacklevel=2)

    def _compare_lists(self) -> None:
        """Warn if the validation list or the test list names training images."""
        train = set(self._pairs("train"))
        for split, listing in ({} if self._parts() else self._lists()).items():
            both = sorted(train & set(self._pairs(split))) if split != "train" else []
            if both:
                warnings.warn(
                    f"{listing} names {len(both)} of the training images ({', '.join(both[:3])}): scores on them do "
                    "not apply to other images",
                    stacklevel=2,
                )
