"""Turns any instance data set, such as Roboflow's COCO exports, into a semantic one with the same classes."""

import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lsseg.data.coco import CocoInstances
from lsseg.data.instances import InstanceData, Instances, InstanceSource
from lsseg.data.module import SegmentationData, Split
from lsseg.data.pixels import ValueRange
from lsseg.data.root import existing_root
from lsseg.data.source import IGNORE_INDEX, Source
from lsseg.errors import ArgumentError, InputError


class ObjectClasses(SegmentationData):
    """Turns an instance data set into a semantic one with ``background`` and its classes; the splits stay the same.

    Where objects overlap, a pixel has the class of the smallest. The pixels of a crowd have the class of the crowd.

    Args:
        objects: The instance data set; its settings of sizes, crops and batches are not used.
        groups: Coarser classes, by name, and the object classes that each holds: ``{"door": ["left_door",
            "right_door"]}``. An object class in no group is background. ``None`` keeps the object classes.
        **options: See :class:`SegmentationData`.
    """

    def __init__(self, objects: InstanceData, groups: dict[str, list[str]] | None = None, **options: Any) -> None:
        super().__init__(**options)
        key = "objects" if groups is None else "groups"
        if groups is None:
            groups = {name: [name] for name in objects.class_names}
        if not 1 <= len(groups) < IGNORE_INDEX:
            raise ArgumentError(
                f"{key} must have 1 to {IGNORE_INDEX - 1} classes besides background, not {len(groups)}"
            )
        self.objects = objects
        self.value_range = objects.value_range
        self.class_of = class_of(groups, objects.class_names, key)
        self.class_names = ("background", *groups)
        self.palette = ((0, 0, 0), *objects.palette[: len(groups)])

    def check(self, *splits: Split) -> None:
        """Check the splits as the instance data set does, and raise its errors."""
        self.objects.check(*splits)

    def source(self, split: Split) -> Source:
        """Return the images and label maps of a split, and raise the errors of the instance data set."""
        return ObjectLabels(self.objects.source(split), self.class_of)


def class_of(groups: dict[str, list[str]], names: Sequence[str], key: str = "groups") -> npt.NDArray[np.uint8]:
    """Return the class of each label: the position of its group, counted from 1, or 0 if it is in no group.

    Args:
        groups: The names of the labels in each group, by the name of the group.
        names: Names of the labels, in their order.
        key: Name of the argument that the groups come from, for the error message.

    Raises:
        ArgumentError: If a group is empty or is called background, or if a name is not a label or is in two groups.
    """
    found: dict[str, int] = {}
    for index, (group, members) in enumerate(groups.items(), 1):
        if not members:
            raise ArgumentError(f"{key}.{group} holds no class")
        if group == "background":
            raise ArgumentError(f"{key}: background cannot be a class, because it is the class of all other pixels")
        for name in members:
            if name not in names:
                known = ", ".join(get_close_matches(name, names, 4, 0.4)) or f"{names[0]} and others"
                raise ArgumentError(f"{key}.{group}: the objects have no class {name!r}; they have {known}")
            if name in found:
                raise ArgumentError(f"{key}.{group}: {name!r} is in another group already")
            found[name] = index
    return np.array([found.get(name, 0) for name in names], np.uint8)


class ObjectLabels:
    """Paints the label maps of an instance source.

    Args:
        source: Images and their objects.
        class_of: The class of each label of the objects.
    """

    def __init__(self, source: InstanceSource, class_of: npt.NDArray[np.uint8]) -> None:
        self.source = source
        self.class_of = class_of

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """Return the name that the instance source gives the image."""
        return self.source.name(index)

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
        """Decode one image, and paint its objects into a label map."""
        image, found = self.source.read(index)
        return image, label_map(found, self.class_of)


def label_map(found: Instances, class_of: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a label map H×W: a pixel has the class of the smallest object that covers it, and 0 without an object."""
    count = len(found.labels)
    size = sum((np.bincount(layer.ravel(), minlength=count + 1) for layer in found.layers), np.zeros(count + 1, int))
    # Ranks need fewer bytes than sizes, which makes this comparison faster for every pixel of every image.
    order = np.lexsort((-np.arange(count), -size[1:]))  # largest first; of equal sizes, the last object first
    rank = np.zeros(count + 1, np.min_scalar_type(count))
    rank[1 + order] = np.arange(1, count + 1)
    highest = rank.take(found.layers[0])
    for layer in found.layers[1:]:
        np.maximum(highest, rank.take(layer), out=highest)
    return np.append(np.uint8(0), class_of[found.labels[order]]).take(highest)


FILE = "_annotations.coco.json"


class CocoFolder(ObjectClasses):
    """Reads ``train/_annotations.coco.json``, ``valid/…`` (or ``val/…``) and ``test/…`` as a semantic data set.

    Its classes are ``background`` and the categories. Without ``valid`` a share of the training images validates.
    Without ``test`` the validation images are also the test images. Where objects overlap, the smallest counts.

    Args:
        root: The folder of the export.
        categories: Names of the categories to use, in this order; null takes all, in the order of their ids.
        value_range: Pixel values that become black and white; null takes the range of the files' format.
        **options: See :class:`SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        categories: list[str] | None = None,
        value_range: ValueRange | None = None,
        **options: Any,
    ) -> None:
        folder = existing_root(root, root, f"give the folder that holds train/{FILE}")
        val = _part(folder, "valid", "val")
        test = _part(folder, "test") or val
        if _part(folder, "train") is None or test is None:
            raise InputError(
                f"{folder} is not an export in COCO's format: expected train/{FILE}, and valid/{FILE} or test/{FILE}"
            )
        objects = CocoInstances(
            str(folder),
            train=f"train/{FILE}",
            train_images="train",
            val=f"{val}/{FILE}" if val else None,
            val_images=val,
            test=f"{test}/{FILE}",
            test_images=test,
            categories=categories,
            value_range=value_range,
        )
        super().__init__(objects, **options)
        self.value_range = value_range
        self.root, self.has_test = folder, test != val

    def check(self, *splits: Split) -> None:
        """Check all files of the splits, and warn if the validation images are also the test images."""
        super().check(*splits)
        if "test" in splits and not self.has_test:
            warnings.warn(
                f"{self.root} has no test/{FILE}: its validation images are also the test images", stacklevel=2
            )


def _part(folder: Path, *names: str) -> str | None:
    return next((name for name in names if (folder / name / FILE).is_file()), None)
