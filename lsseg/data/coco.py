"""Instance data sets in COCO's format: one JSON file and one folder of images for each split."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lsseg.data.classes import display_color
from lsseg.data.coco_classes import COCO_NAMES, COCO_PALETTE
from lsseg.data.coco_file import BrokenSegmentation, CocoFile, checked_code, class_names, decoded, has_pixel
from lsseg.data.instances import InstanceData, Instances, from_masks
from lsseg.data.loading import derived_seed
from lsseg.data.module import Split
from lsseg.data.pixels import ValueRange, check_value_range, image_size, read_image, turned
from lsseg.data.root import check_count, existing_root
from lsseg.data.source import distinct_names
from lsseg.errors import InputError, refuse_all

COUNTS_2017 = {"train": 118287, "val": 5000, "test": 5000}
SHOWN = 5  # ids of annotations in a warning


class CocoObjects:
    """The images of a COCO file and their objects: polygons, run-length codes, crowds.

    Args:
        file: The annotations.
        folder: Folder of the images.
        labels: Category id → label; objects of other categories are left out.
        images: Entries of the file's images; None is all of them.
        value_range: Values of black and white in images that are not 8-bit (see :func:`~lsseg.data.pixels.read_image`).
    """

    def __init__(
        self,
        file: CocoFile,
        folder: Path,
        labels: dict[int, int],
        images: Sequence[dict[str, Any]] | None = None,
        value_range: ValueRange | None = None,
    ) -> None:
        self.file, self.folder, self.labels = file, folder, labels
        self.images = list(file.images if images is None else images)
        self.value_range = value_range
        self._names = distinct_names([entry["file_name"].replace("\\", "/") for entry in self.images])

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Stem of the image file, or as much of its path as makes it the only one of its name."""
        return self._names[index]

    def path(self, index: int) -> Path:
        """The image's file; folders may be divided by backslashes, as Windows does."""
        name = str(self.images[index]["file_name"])
        path = self.folder / name
        return self.folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Decode one image and the masks of its objects.

        Raises:
            InputError: If the image is missing or corrupt, or a segmentation cannot be decoded; names the file and the
                annotation.
        """
        image = read_image(self.path(index), self.value_range)
        size = (image.shape[0], image.shape[1])
        self._compare_size(index, size)
        codes = [(annotation, self._code(annotation, size)) for annotation in self._wanted(index)]
        objects = [(annotation, decoded(code, size)) for annotation, code in codes if has_pixel(code, size)]
        labels = [self.labels[annotation["category_id"]] for annotation, _ in objects]
        crowds = [bool(annotation.get("iscrowd", 0)) for annotation, _ in objects]
        return image, from_masks([mask for _, mask in objects], labels, crowds, size)

    def check(self) -> list[Any]:
        """Look at every image's file and every annotation, without decoding them.

        Returns:
            The ids of the annotations that have no pixel.

        Raises:
            InputError: If anything is wrong; names all of it.
        """
        problems: list[str] = []
        empty: list[Any] = []
        for index in range(len(self)):
            try:
                size = image_size(self.path(index))
                self._compare_size(index, size)
            except InputError as error:
                problems.append(str(error))
                continue
            for annotation in self._wanted(index):
                try:
                    if not has_pixel(self._code(annotation, size), size):
                        empty.append(annotation.get("id"))
                except InputError as error:
                    problems.append(str(error))
        refuse_all(str(self.file.path), problems)
        return empty

    def _wanted(self, index: int) -> list[dict[str, Any]]:
        own = self.file.annotations.get(self.images[index]["id"], [])
        return [annotation for annotation in own if annotation["category_id"] in self.labels]

    def _compare_size(self, index: int, size: tuple[int, int]) -> None:
        entry = self.images[index]
        said = (entry.get("height") or size[0], entry.get("width") or size[1])
        if said != size:
            path = self.path(index)
            raise InputError(
                f"{path} is {size[0]}×{size[1]}{turned(path)}, but {self.file.path} says {said[0]}×{said[1]}"
            )

    def _code(self, annotation: dict[str, Any], size: tuple[int, int]) -> Any:
        try:
            return checked_code(annotation, size)
        except BrokenSegmentation as error:
            raise InputError(
                f"{self.file.path}: the segmentation of annotation {annotation.get('id')} cannot be decoded: {error}"
            ) from error


class CocoInstances(InstanceData):
    """Any data set in COCO's format; the defaults are the files of COCO 2017, whose validation split is its test.

    (:class:`COCO2017` also knows its names, colours and counts.)

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/coco``, then ``data/coco``.
        train: Annotations of the training split, below the root.
        train_images: Folder of its images, below the root.
        val: Annotations of the validation split; null holds out a share of the training split.
        val_images: Folder of its images.
        test: Annotations of the test split.
        test_images: Folder of its images.
        val_fraction: The share of the training images that validates where there is no split for it.
        split_seed: Seed of that choice; it does not depend on the run's seed.
        categories: Names of the categories to use, in this order; null is all, in the order of their ids.
        value_range: The values that are black and white in images that are not 8-bit; null is the range of the files'
            format.
        **options: See :class:`InstanceData`.
    """

    folder = "coco"
    hint = "it holds annotations/instances_train2017.json, train2017/ and the same for val2017 (cocodataset.org)"

    def __init__(
        self,
        root: str | None = None,
        train: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val: str | None = "annotations/instances_val2017.json",
        val_images: str | None = "val2017",
        test: str = "annotations/instances_val2017.json",
        test_images: str = "val2017",
        val_fraction: float = 0.15,
        split_seed: int = 0,
        categories: list[str] | None = None,
        value_range: ValueRange | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_value_range(value_range)
        self.value_range = value_range
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction must lie in (0, 1), not {val_fraction}")
        if (val is None) != (val_images is None):
            raise InputError("data.val and data.val_images belong together: give both or neither")
        self.root = existing_root(root, self.folder, self.hint)
        self.splits = {"train": (train, train_images), "test": (test, test_images)}
        if val is not None and val_images is not None:
            self.splits["val"] = (val, val_images)
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self._files: dict[str, CocoFile] = {}
        self._checked: set[Split] = set()
        names = self._all_names(test) if categories is None else categories
        if not names or len(set(names)) < len(names):
            raise InputError(f"data.categories must be different names, at least one, not {names}")
        self._file(test).labels(names)
        self.class_names = tuple(names)
        self.palette = tuple(display_color(label + 1) for label in range(len(names)))

    def source(self, split: Split) -> CocoObjects:
        """The objects of a split; raises ``InputError`` where files are missing or broken."""
        name, folder = self.splits.get(split, self.splits["train"])
        file = self._file(name)
        if not (self.root / folder).is_dir():
            raise InputError(f"{self.root / folder} is not a folder")
        images = file.images
        if "val" not in self.splits and split in ("train", "val"):
            order = np.random.default_rng(derived_seed(self.split_seed)).permutation(len(images))
            held = set(order[: max(1, round(len(images) * self.val_fraction))].tolist())
            images = [entry for place, entry in enumerate(images) if (place in held) == (split == "val")]
        labels = file.labels(self.class_names)
        single = (
            a for e in images for a in file.annotations[e["id"]] if not a.get("iscrowd") and a["category_id"] in labels
        )
        if not any(True for _ in single):
            raise InputError(f"the {split} split has no object: {file.path} annotates none of its {len(images)} images")
        return CocoObjects(file, self.root / folder, labels, images, self.value_range)

    def check(self, *splits: Split) -> None:
        """Look at all files of the splits, before anything is spent on training.

        Raises:
            InputError: If anything is wrong; names all of it.
        """
        for split in splits:
            if split in self._checked:
                continue
            source = self.source(split)
            empty = source.check()
            if empty:
                some = ", ".join(map(str, empty[:SHOWN])) + (", …" if len(empty) > SHOWN else "")
                warnings.warn(
                    f"{source.file.path}: {len(empty)} annotation(s) without a pixel are left out: {some}",
                    stacklevel=2,
                )
            self._checked.add(split)
        super().check(*splits)

    def _all_names(self, test: str) -> list[str]:
        """The names of the test file's categories; all files are asked whether a doubtful one has objects."""
        file = self._file(test)
        names = class_names(file, set())
        if len(names) == len(file.categories):
            return names
        used: set[str] = set()
        for name, _ in self.splits.values():
            other = self._file(name)
            ids = other.used()
            used |= {str(category["name"]) for category in other.categories if category["id"] in ids}
        return class_names(file, {category["id"] for category in file.categories if category["name"] in used})

    def _file(self, name: str) -> CocoFile:
        if name not in self._files:
            self._files[name] = CocoFile(self.root / name)
        return self._files[name]


class COCO2017(CocoInstances):
    """COCO 2017: ``train2017/``, ``val2017/`` and ``annotations/instances_{train,val}2017.json``; val is the test.

    (The annotations of the official test images are not public.)

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/coco``, then ``data/coco``.
        partial: Accept a split that has not the official number of images.
        **options: See :class:`InstanceData`.
    """

    def __init__(self, root: str | None = None, partial: bool = False, **options: Any) -> None:
        super().__init__(root, categories=list(COCO_NAMES), **options)
        self.palette = COCO_PALETTE
        self.partial = partial

    def source(self, split: Split) -> CocoObjects:
        """The objects of a split; raises ``InputError`` where files are missing, broken, or too few."""
        source = super().source(split)
        check_count(self.root, f"{split} (2017)", len(source), COUNTS_2017[split], self.partial)
        return source


class CarParts(CocoInstances):
    """Car parts (Pasupa et al. 2021), 18 classes: 400 training images, of which 60 validate, and 100 test images.

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/car_parts``, then ``data/car_parts``.
        **options: See :class:`CocoInstances` and :class:`InstanceData`.
    """

    folder = "car_parts"
    hint = "it holds annotations/instances_train.json and instances_test.json, train/ and test/ (github.com/dsmlr)"
    names = (
        *("back_bumper", "back_glass", "back_left_door", "back_left_light", "back_right_door", "back_right_light"),
        *("front_bumper", "front_glass", "front_left_door", "front_left_light", "front_right_door"),
        *("front_right_light", "hood", "left_mirror", "right_mirror", "tailgate", "trunk", "wheel"),
    )

    def __init__(self, root: str | None = None, **options: Any) -> None:
        super().__init__(
            root,
            train="annotations/instances_train.json",
            train_images="train",
            val=None,
            val_images=None,
            test="annotations/instances_test.json",
            test_images="test",
            categories=list(self.names),
            **options,
        )
