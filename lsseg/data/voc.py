"""PASCAL VOC 2012 segmentation (Everingham 2010): 20 classes, background, and SBD's annotations (Hariharan 2011)."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lsseg.data.module import SegmentationData, Split
from lsseg.data.root import Origin, check_count, data_root, existing_root
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source
from lsseg.errors import ArgumentError, InputError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COUNTS = {"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582}


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colours: the bits of the label, three at a time, from the highest bit of each channel down.

    >>> voc_palette(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    colors = []
    for label in range(count):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
        colors.append((channels[0], channels[1], channels[2]))
    return tuple(colors)


LABELS = {label: label for label in range(len(CLASSES))} | {IGNORE_INDEX: IGNORE_INDEX}
GROUND = ("GTcls", "Segmentation")  # where the labels are in a file of SBD


class VOC2012(SegmentationData):
    """VOC 2012: ``JPEGImages/``, ``SegmentationClass/``, ``ImageSets/Segmentation/train.txt`` and ``val.txt``.

    The test split is val (1449 images; the annotations of the official test images are not public), and so is the
    validation split: test numbers are those of the last weights, which nothing is selected by.

    ``trainaug`` (10582 images) is train and what SBD annotates besides val: from ``SegmentationClassAug/`` and
    ``ImageSets/Segmentation/trainaug.txt`` where they are there, else from SBD as it is distributed (``cls/*.mat``,
    ``train.txt``, ``val.txt``). VOC's own mask of an image comes first.

    Args:
        root: The folder ``VOC2012``, or one that holds it or ``VOCdevkit/VOC2012``; null looks in
            ``$LSSEG_DATA/voc2012``, then ``data/voc2012``.
        train_set: ``train`` (1464 images), ``trainaug`` (10582), or ``trainval`` (2913; val is no test then).
        sbd: SBD's folder, the one with ``cls``, or one that holds it as ``benchmark_RELEASE/dataset``; null looks in
            ``$LSSEG_DATA/sbd``, then ``data/sbd``.
        partial: Accept a split that has not the official number of images.
        **options: See :class:`SegmentationData`.
    """

    origin = Origin(
        "voc2012",
        "voc2012",
        {"JPEGImages": 17125, "SegmentationClass": 2913},
        "images under Flickr's terms; cite Everingham et al. 2010, and Hariharan et al. 2011 for SBD",
        source="host.robots.ox.ac.uk/pascal/VOC/voc2012: the folder VOC2012 of VOCtrainval_11-May-2012.tar; for the "
        "10582 training images of trainaug also SBD (benchmark.tgz), unpacked into the folder sbd beside it",
        extra={"../sbd/**/cls/*.mat": 11355},
        unpacked=("VOC2012", "VOCdevkit/VOC2012"),
    )
    class_names = CLASSES
    palette = voc_palette(len(CLASSES))

    def __init__(
        self,
        root: str | None = None,
        train_set: Literal["train", "trainaug", "trainval"] = "trainaug",
        sbd: str | None = None,
        partial: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.train_set, self.sbd, self.partial = root, train_set, sbd, partial

    def source(self, split: Split) -> Source:
        """The images of a split; raises ``InputError`` where files are missing."""
        root = _below(existing_root(self.root, "voc2012", "`lsseg data voc2012` says how to get it"), "JPEGImages")
        name = self.train_set if split == "train" else "val"
        if name == "trainaug":
            source = self._augmented(root)
        else:
            source = MatPairs(
                _found(root, read_list(root / "ImageSets" / "Segmentation" / f"{name}.txt"), []), LABELS, GROUND
            )
        check_count(root, name, len(source), COUNTS[name], self.partial)
        return source

    def _augmented(self, root: Path) -> "MatPairs":
        lists = root / "ImageSets" / "Segmentation"
        merged = root / "SegmentationClassAug"
        if merged.is_dir() and (lists / "trainaug.txt").is_file():
            return MatPairs(_found(root, read_list(lists / "trainaug.txt"), [(merged, ".png")]), LABELS, GROUND)
        place = Path(self.sbd) if self.sbd else data_root("sbd")
        if not place.is_dir():
            raise ArgumentError(
                f"train_set trainaug needs SBD (sbd {place} is not a folder; `lsseg data voc2012` says how "
                f"to get it), or {merged} and {lists / 'trainaug.txt'}"
            )
        sbd = _below(place, "cls")
        own = set(read_list(lists / "train.txt"))
        more = {*read_list(sbd / "train.txt"), *read_list(sbd / "val.txt")} - set(read_list(lists / "val.txt"))
        return MatPairs(_found(root, sorted(own | more), [(sbd / "cls", ".mat")]), LABELS, GROUND)


class MatPairs(FilePairs):
    """Pairs of which a mask may be a MATLAB file.

    Args:
        pairs: (image, mask) paths.
        labels: File value → label.
        place: Of the labels in a MATLAB file: a variable and, where it is a structure, its field.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], labels: dict[int, int], place: tuple[str, ...]) -> None:
        super().__init__(pairs, labels)
        self.place = place

    def read_labels(self, path: Path) -> npt.NDArray[np.integer]:
        """Return the values of a mask's file."""
        return read_mat(path, *self.place) if path.suffix == ".mat" else super().read_labels(path)


def read_list(path: Path) -> list[str]:
    """The names in a list of images, in its order.

    Raises:
        InputError: If the file is missing or empty.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: it lists the images of a split")
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path} lists no image")
    return names


def _below(place: Path, wanted: str) -> Path:
    """The folder that holds what is wanted: this one or where the archives unpack to."""
    for inner in ("", "VOC2012", "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset", "dataset"):
        if (place / inner / wanted).is_dir():
            return place / inner
    raise InputError(f"{place} holds no folder {wanted}")


def _found(root: Path, names: Iterable[str], others: list[tuple[Path, str]]) -> list[tuple[Path, Path]]:
    """Image and mask of each name, from the first folder that has the mask."""
    folders = [(root / "SegmentationClass", ".png"), *others]
    images = {path.name for path in (root / "JPEGImages").iterdir()}
    masks = [{path.name for path in folder.iterdir()} if folder.is_dir() else set() for folder, _ in folders]
    pairs = []
    for name in names:
        if f"{name}.jpg" not in images:
            raise InputError(f"{root / 'JPEGImages' / name}.jpg is missing")
        for (folder, suffix), known in zip(folders, masks, strict=True):
            if name + suffix in known:
                pairs.append((root / "JPEGImages" / f"{name}.jpg", folder / (name + suffix)))
                break
        else:
            raise InputError(f"there is no mask of {name} in {' or '.join(str(folder) for folder, _ in folders)}")
    return pairs


def read_mat(path: Path, name: str, field: str | None = None) -> npt.NDArray[np.integer]:
    """A mask in a MATLAB file: a variable, or a field of a structure.

    Raises:
        InputError: If the file cannot be read or does not hold it.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path)[name]
        labels: npt.NDArray[np.integer] = np.asarray(content if field is None else content[field][0, 0], np.int32)
    except (
        MatReadError,
        NotImplementedError,
        ValueError,
        KeyError,
        IndexError,
        OSError,
        TypeError,
        zlib.error,
    ) as error:
        raise InputError(
            f"cannot read {path} as a mask: it should hold {name}{f'.{field}' if field else ''}"
        ) from error
    return labels
