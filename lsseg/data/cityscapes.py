"""Reads Cityscapes (Cordts 2016) as it is distributed: street scenes with 19 classes (8 classes of objects)."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lsseg.data.instances import InstanceData, Instances, InstanceSource, Pairs, from_map
from lsseg.data.module import SegmentationData, Split
from lsseg.data.root import Origin, check_count, existing_root
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source, read_image, read_mask
from lsseg.errors import ArgumentError, InputError

# Each row is a class's name, number in the official annotation files and colour, in the order of the training labels.
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
OBJECTS = CLASSES[11:]  # person to bicycle
NUMBERS = 34  # official labels 0..33; the licence plate has -1, which 8-bit files hold as 255
COUNTS = {"train": 2975, "val": 500, "train_extra": 19998}


class Cityscapes(SegmentationData):
    """Reads ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``.

    If a split has no ``*_labelIds.png``, the ``*_labelTrainIds.png`` of the official scripts are read. The test split
    and the validation split are both val, since the annotations of the official test images are not public. Test scores
    are those of the last weights, so nothing is selected on the test split.

    Args:
        root: The folder that contains ``leftImg8bit``; null takes ``$LSSEG_DATA/cityscapes``, or ``data/cityscapes``
            if ``LSSEG_DATA`` is not set.
        train_set: ``train`` (2975 images), ``trainval`` (3475; it includes the test images), or ``train_extra`` (19998;
            it has coarse annotations only).
        annotation: Annotations of the training split, ``fine`` (``gtFine``) or ``coarse`` (``gtCoarse``); those of val
            are always fine.
        partial: Accept a split whose number of images is not the official one.
        **options: See :class:`SegmentationData`.
    """

    origin = Origin(
        "cityscapes",
        "cityscapes",
        {
            f"{part}/{split}/*/*_{end}.png": count
            for split, count in (("train", 2975), ("val", 500))
            for part, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds"))
        },
        "research use, registration needed; cite Cordts et al. 2016",
        source="cityscapes-dataset.com: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (for coarse training "
        "leftImg8bit_trainextra.zip and gtCoarse.zip, too)",
        extra={"gtCoarse/train_extra/*/*_gtCoarse_labelIds.png": 19998},
    )
    class_names = tuple(name for name, _, _ in CLASSES)
    palette = tuple(color for _, _, color in CLASSES)
    file_values = tuple(number for _, number, _ in CLASSES)

    def __init__(
        self,
        root: str | None = None,
        train_set: Literal["train", "trainval", "train_extra"] = "train",
        annotation: Literal["fine", "coarse"] = "fine",
        partial: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if train_set == "train_extra" and annotation == "fine":
            raise ArgumentError("train_set train_extra has coarse annotations only: set annotation coarse")
        self.root, self.train_set, self.annotation, self.partial = root, train_set, annotation, partial

    def source(self, split: Split) -> Source:
        """Return the images of a split; raise ``InputError`` if folders or annotations are missing."""
        root = existing_root(self.root, "cityscapes", "`lsseg data cityscapes` says how to get it")
        if split != "train":
            return LabelIds(_pairs(root, "val", "gtFine", self.partial))
        kind = "gtFine" if self.annotation == "fine" else "gtCoarse"
        parts = ("train", "val") if self.train_set == "trainval" else (self.train_set,)
        return LabelIds([pair for part in parts for pair in _pairs(root, part, kind, self.partial)])


class CityscapesInstances(InstanceData):
    """Reads ``leftImg8bit/SPLIT/CITY`` and ``gtFine/SPLIT/CITY/*_gtFine_instanceIds.png`` for 8 classes of objects.

    A region of these classes that has no object number is a group of objects and becomes a crowd. The test split and
    the validation split are both val.

    Args:
        root: The folder that contains ``leftImg8bit``; null takes ``$LSSEG_DATA/cityscapes``, or ``data/cityscapes``
            if ``LSSEG_DATA`` is not set.
        train_set: ``train`` (2975 images) or ``trainval`` (3475; it includes the test images).
        partial: Accept a split whose number of images is not the official one.
        **options: See :class:`InstanceData`.
    """

    class_names = tuple(name for name, _, _ in OBJECTS)
    palette = tuple(color for _, _, color in OBJECTS)
    file_values = tuple(number for _, number, _ in OBJECTS)

    def __init__(
        self,
        root: str | None = None,
        train_set: Literal["train", "trainval"] = "train",
        partial: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.train_set, self.partial = root, train_set, partial

    def source(self, split: Split) -> InstanceSource:
        """Return the objects of a split; raise ``InputError`` if folders or annotations are missing."""
        root = existing_root(self.root, "cityscapes", "`lsseg data cityscapes` says how to get it")
        parts = ["val"] if split != "train" else ["train", "val"] if self.train_set == "trainval" else ["train"]
        kinds = ("instanceIds",)
        return InstanceIds([pair for part in parts for pair in _pairs(root, part, "gtFine", self.partial, kinds)])


class InstanceIds(Pairs):
    """Reads maps that hold 1000 · class + number for an object, and the class alone for a group or any other region."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Decode an image and its objects; raise ``InputError`` if a file is corrupt."""
        image_path, map_path = self.pairs[index]
        ids = read_mask(map_path).astype(np.int64)
        known = {number: label for label, (_, number, _) in enumerate(OBJECTS)}
        values, numbered = np.unique(ids, return_inverse=True)
        classes = np.where(values >= 1000, values // 1000, values)
        kept = np.isin(classes, list(known))
        order = np.where(kept, np.cumsum(kept), 0)  # 0 is no object; 1, 2, … are the objects
        found = from_map(order[numbered.reshape(ids.shape)], [known[int(c)] for c in classes[kept]])
        return read_image(image_path), found._replace(crowd=values[kept] < 1000)


class LabelIds(FilePairs):
    """Reads masks that hold the official numbers or the training labels; the name of the first mask decides."""

    def __init__(self, pairs: list[tuple[Path, Path]]) -> None:
        trained = pairs[0][1].name.endswith("labelTrainIds.png")
        known = {label: label if trained else number for label, (_, number, _) in enumerate(CLASSES)}
        void = dict.fromkeys((255,) if trained else (*range(NUMBERS), 255), IGNORE_INDEX)
        super().__init__(pairs, void | {value: label for label, value in known.items()})


def _pairs(
    root: Path, split: str, kind: str, partial: bool, endings: tuple[str, ...] = ("labelIds", "labelTrainIds")
) -> list[tuple[Path, Path]]:
    """Return the image and annotation paths of a split, sorted by city; no file is opened."""
    images, truth = root / "leftImg8bit" / split, root / kind / split
    for folder in (images, truth):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; `lsseg data cityscapes` says how to get it")
    known = {path.relative_to(truth) for path in truth.glob("*/*.png")}
    ending = next((e for e in endings if any(path.name.endswith(f"_{kind}_{e}.png") for path in known)), None)
    if ending is None:
        raise InputError(f"{truth} holds no annotation *_{kind}_{endings[0]}.png")
    pairs = []
    for image in sorted(images.glob("*/*_leftImg8bit.png")):
        wanted = Path(image.parent.name) / image.name.replace("_leftImg8bit", f"_{kind}_{ending}")
        if wanted not in known:
            raise InputError(f"{image} has no annotation: expected {truth / wanted}")
        pairs.append((image, truth / wanted))
    if not pairs:
        raise InputError(f"{images} holds no image CITY/*_leftImg8bit.png")
    check_count(root, split, len(pairs), COUNTS[split], partial)
    return pairs
