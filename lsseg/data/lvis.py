"""Reads LVIS v1 (Gupta 2019): COCO's images, carefully annotated with 1203 categories; uses all or COCO's 80."""

from pathlib import Path
from typing import Any, Literal

from lsseg.data.classes import display_color
from lsseg.data.coco import COCO_NAMES, COCO_PALETTE, COCO_SYNSETS, CocoObjects
from lsseg.data.coco_file import CocoFile
from lsseg.data.instances import InstanceData
from lsseg.data.module import Split
from lsseg.data.root import Origin, check_count, data_root, existing_root
from lsseg.errors import ArgumentError, InputError

COUNTS = {"lvis_v1_train.json": 100170, "lvis_v1_val.json": 19809}


class LvisFile(CocoFile):
    """Reads LVIS's variant of COCO's format: an image has a URL instead of a file name, and a category has a synset."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for category in self.categories:
            if category.get("frequency") not in ("r", "c", "f"):
                raise InputError(f"{path}: category {category['name']!r} lacks its frequency; is it a file of LVIS?")

    def named(self, entry: Any) -> Any:
        """Return the entry with ``file_name``: the end of its URL, such as ``val2017/000000000139.jpg``."""
        if not isinstance(entry, dict) or not isinstance(entry.get("coco_url"), str):
            return entry
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if not isinstance(entry.get(key), list):
                raise InputError(f"{self.path}: image {entry.get('id')} lacks the list {key}; is it a file of LVIS?")
        return {**entry, "file_name": "/".join(entry["coco_url"].split("/")[-2:])}

    def coco_labels(self) -> dict[int, int]:
        """Return category id → label for those of COCO's 80 categories that the file has."""
        known = {category.get("synset"): category["id"] for category in self.categories}
        found = {}
        for label, synsets in enumerate(COCO_SYNSETS.values()):
            for synset in synsets.split("|"):
                if synset in known:
                    found[known[synset]] = label
                    break
        if not found:
            raise InputError(f"{self.path}: no category has the synset of a COCO category; is it a file of LVIS?")
        return found


class LVIS(InstanceData):
    """Reads LVIS v1: ``lvis_v1_train.json`` and ``lvis_v1_val.json``, and COCO's ``train2017/`` and ``val2017/``.

    LVIS annotates only some categories in each image, and for some of these not all objects. COCO's average precision,
    which ``test`` shows, counts detections of unannotated objects as false positives. The callback ``OfficialScores``
    adds LVIS's own average precision, which ignores them.

    Args:
        root: The folder of the annotations; null takes ``$LSSEG_DATA/lvis``, or ``data/lvis`` if ``LSSEG_DATA`` is not
            set.
        coco_root: The folder that contains ``train2017`` and ``val2017``; null takes the root if it contains
            ``val2017``, else ``$LSSEG_DATA/coco``, or ``data/coco`` if ``LSSEG_DATA`` is not set. Images of both are
            used, because LVIS splits COCO's images differently.
        categories: ``coco`` takes COCO's 80 categories in COCO's order and with COCO's names, so that a network trained
            on COCO can be tested and AP* (Homayounfar 2020) measured; ``all`` takes all categories.
        train: Annotation file of the training split, below the root.
        val: Annotation file of the validation split, which is also the test split, below the root.
        val_images: The only folder whose validation images are used; null uses both. ``val2017`` leaves out images
            that a network trained on COCO has seen, because LVIS v1 splits COCO's images differently.
        partial: Accept a file whose number of images is not the official one (100170, 19809).
        **options: See :class:`InstanceData`.
    """

    origin = Origin(
        "lvis",
        "lvis",
        {"lvis_v1_train.json": 1, "lvis_v1_val.json": 1},
        "annotations CC BY 4.0; cite Gupta, Dollár and Girshick 2019",
        source="lvisdataset.org: lvis_v1_train.json and lvis_v1_val.json; the images are COCO's, in the folder coco "
        "beside it",
    )

    def __init__(
        self,
        root: str | None = None,
        coco_root: str | None = None,
        categories: Literal["coco", "all"] = "coco",
        train: str = "lvis_v1_train.json",
        val: str = "lvis_v1_val.json",
        val_images: Literal["train2017", "val2017"] | None = None,
        partial: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = existing_root(root, "lvis", "`lsseg data lvis` says how to get it")
        beside = self.root if (self.root / "val2017").is_dir() else data_root("coco")
        self.coco_root = Path(coco_root) if coco_root else beside
        if not self.coco_root.is_dir():
            raise ArgumentError(
                f"coco_root {self.coco_root} is not a folder; it must hold COCO's train2017/ and val2017/"
            )
        self.val_images, self.partial = val_images, partial
        self.categories, self.splits = categories, {"train": train, "val": val, "test": val}
        self._files: dict[str, LvisFile] = {}
        self._checked: set[str] = set()
        if categories == "coco":
            self.class_names: tuple[str, ...] = COCO_NAMES
            self.palette = COCO_PALETTE
        else:
            self.class_names = tuple(str(category["name"]) for category in self.annotations("test").categories)
            self.palette = tuple(display_color(1 + label) for label in range(len(self.class_names)))

    def annotations(self, split: Split) -> LvisFile:
        """Return the annotation file of a split; each file is read once."""
        name = self.splits[split]
        if name not in self._files:
            self._files[name] = LvisFile(self.root / name)
        return self._files[name]

    def labels(self, split: Split) -> dict[int, int]:
        """Return category id → label for the file of a split."""
        file = self.annotations(split)
        return file.coco_labels() if self.categories == "coco" else file.labels(self.class_names)

    def check(self, *splits: Split) -> None:
        """Check all files of the splits before a training starts.

        Raises:
            InputError: If anything is wrong; names all of it.
        """
        for name, split in {self.splits[split]: split for split in splits}.items():
            if name not in self._checked:  # the validation images are the test images
                self.source(split).check()
                self._checked.add(name)
        super().check(*splits)

    def source(self, split: Split) -> CocoObjects:
        """Return the objects of a split; raise ``InputError`` if files are missing or broken."""
        file = self.annotations(split)
        images = file.images
        official = COUNTS.get(Path(self.splits[split]).name)
        if official is not None:
            check_count(self.root, split, len(images), official, self.partial)
        if self.val_images is not None and split != "train":
            images = [entry for entry in images if entry["file_name"].startswith(f"{self.val_images}/")]
            if not images:
                raise InputError(
                    f"{file.path} has no image of {self.val_images}: set val_images to another folder, or to null"
                )
        return CocoObjects(file, self.coco_root, self.labels(split), images)
