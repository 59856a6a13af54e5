"""Instance data sets in COCO's format: one JSON file and one folder of images for each split."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from lsseg.data.coco_classes import COCO_NAMES, COCO_PALETTE
from lsseg.data.folder import display_color
from lsseg.data.instances import InstanceData, Instances, InstanceSource, from_masks
from lsseg.data.loading import derived_seed
from lsseg.data.module import Split
from lsseg.data.root import check_count, existing_root
from lsseg.data.source import read_image
from lsseg.errors import InputError

KEYS = ("images", "annotations", "categories")
FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
# A point farther out than this many image sides is a mistake; the library that fills polygons would not survive it.
FAR = 4
COUNTS_2017 = {"train": 118287, "val": 5000, "test": 5000}


class CocoFile:
    """What a COCO annotation file says, checked for what is needed of it.

    Args:
        path: The JSON file.

    Raises:
        InputError: If it is missing, no JSON, or lacks images, annotations or categories.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not JSON: {error}") from error
        for key in KEYS:
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise InputError(f"{path} is no COCO instance file: it lacks the list `{key}`")
        content["images"] = [self.named(entry) for entry in content["images"]]
        for key, fields in FIELDS.items():
            for entry in content[key]:
                for field, kind in fields.items():
                    if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                        raise InputError(f"{path}: an entry of `{key}` lacks a proper `{field}`: {str(entry)[:80]}")
        self.images: list[dict[str, Any]] = content["images"]
        self.categories = sorted(content["categories"], key=lambda category: category["id"])
        self.annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        known = {entry["id"] for entry in self.images}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in known:
                raise InputError(
                    f"{path}: annotation {annotation.get('id')} is of an image that the file does not list"
                )
            self.annotations[annotation["image_id"]].append(annotation)

    def named(self, entry: Any) -> Any:
        """An image's entry with ``file_name``, for formats that say it otherwise."""
        return entry

    def labels(self, names: Sequence[str]) -> dict[int, int]:
        """Category id → label, by name: files of one data set may number their categories differently.

        Raises:
            InputError: If the file lacks one of the names.
        """
        known = {str(category["name"]): category["id"] for category in self.categories}
        for name in names:
            if name not in known:
                raise InputError(f"data.categories: {name!r} is none of {', '.join(known)} in {self.path}")
        return {known[name]: label for label, name in enumerate(names)}


class CocoObjects:
    """The images of a COCO file and their objects: polygons, run-length codes, crowds.

    Args:
        file: The annotations.
        folder: Where the images are.
        labels: Category id → label; objects of other categories are left out.
        images: Entries of the file's images; None is all of them.
    """

    def __init__(
        self, file: CocoFile, folder: Path, labels: dict[int, int], images: Sequence[dict[str, Any]] | None = None
    ) -> None:
        self.file, self.folder, self.labels = file, folder, labels
        self.images = list(file.images if images is None else images)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Stem of the image file."""
        return Path(self.images[index]["file_name"]).stem

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Decode one image and the masks of its objects.

        Raises:
            InputError: If the image is missing or corrupt, or a segmentation cannot be decoded; names the file and the
                annotation.
        """
        entry = self.images[index]
        image = read_image(self.folder / entry["file_name"])
        size = (image.shape[0], image.shape[1])
        if size != (entry.get("height", size[0]), entry.get("width", size[1])):
            raise InputError(
                f"{self.folder / entry['file_name']} is {size[0]}×{size[1]}, but {self.file.path} says "
                f"{entry['height']}×{entry['width']}"
            )
        wanted = [a for a in self.file.annotations[entry["id"]] if a["category_id"] in self.labels]
        masks = [self._mask(annotation, size) for annotation in wanted]
        labels = [self.labels[annotation["category_id"]] for annotation in wanted]
        return image, from_masks(masks, labels, [bool(a.get("iscrowd", 0)) for a in wanted], size)

    def _mask(self, annotation: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        code: Any = annotation.get("segmentation")
        if not _is_polygons(code, FAR * max(size)) and not (
            isinstance(code, dict) and code.keys() >= {"size", "counts"}
        ):
            raise self._broken(annotation, "it is neither a list of polygons nor a run-length code")
        try:
            if isinstance(code, list):
                code = coco_mask.merge(coco_mask.frPyObjects(code, *size))
            elif isinstance(code["counts"], list):
                code = coco_mask.frPyObjects(code, *size)
            mask: npt.NDArray[np.bool_] = coco_mask.decode(code).astype(bool)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._broken(annotation, str(error)) from error
        if mask.shape != size:
            raise self._broken(annotation, f"it is of an image of {mask.shape[0]}×{mask.shape[1]}")
        return mask

    def _broken(self, annotation: dict[str, Any], reason: str) -> InputError:
        return InputError(
            f"{self.file.path}: the segmentation of annotation {annotation.get('id')} cannot be decoded: {reason}"
        )


def _is_polygons(code: Any, limit: float) -> bool:
    """Whether it is a list of polygons, each x, y, x, y, … of three points or more, none farther out than a limit."""
    return isinstance(code, list) and len(code) > 0 and all(_is_polygon(line, limit) for line in code)


def _is_polygon(line: Any, limit: float) -> bool:
    if not isinstance(line, list) or len(line) < 6 or len(line) % 2:
        return False
    return all(isinstance(x, int | float) and abs(x) <= limit for x in line)


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
        split_seed: Of that choice; it does not depend on the run's seed.
        categories: Names of the categories to use, in this order; null is all, in the order of their ids.
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
        **options: Any,
    ) -> None:
        super().__init__(**options)
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
        names = (
            [str(category["name"]) for category in self._file(test).categories] if categories is None else categories
        )
        if not names or len(set(names)) < len(names):
            raise InputError(f"data.categories must be different names, at least one, not {names}")
        self._file(test).labels(names)
        self.class_names = tuple(names)
        self.palette = tuple(display_color(label + 1) for label in range(len(names)))

    def source(self, split: Split) -> InstanceSource:
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
        return CocoObjects(file, self.root / folder, labels, images)

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

    def source(self, split: Split) -> InstanceSource:
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
