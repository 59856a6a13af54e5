"""Reads PASCAL VOC 2012 (Everingham 2010): 20 classes and background; also reads SBD's masks (Hariharan 2011)."""

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
    """Return VOC's colours: three bits of the label at a time fill the three channels from the highest bit down.

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
    """Reads ``JPEGImages/``, ``SegmentationClass/``, ``ImageSets/Segmentation/train.txt`` and ``val.txt`` of VOC 2012.

    The test split and the validation split are both val (1449 images), since the annotations of the official test
    images are not public. Test scores are those of the last weights, so nothing is selected on the test split.

    ``trainaug`` (10582 images) is train and the images of SBD that are not in val. Its masks come from
    ``SegmentationClassAug/`` if that and ``ImageSets/Segmentation/trainaug.txt`` exist, else from SBD as distributed
    (``cls/*.mat``, ``train.txt``, ``val.txt``). VOC's own mask of an image takes precedence over both.

    Args:
        root: The folder ``VOC2012``, or a folder that contains it or ``VOCdevkit/VOC2012``; null looks in
            ``$LSSEG_DATA/voc2012``, then ``data/voc2012``.
        train_set: ``train`` (1464 images), ``trainaug`` (10582), or ``trainval`` (2913; it includes the test images).
        sbd: The folder of SBD that contains ``cls``, or a folder that contains it as ``benchmark_RELEASE/dataset``;
            null looks in ``$LSSEG_DATA/sbd``, then ``data/sbd``.
        partial: Accept a split whose number of images is not the official one.
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
        """Return the images of a split; raise ``InputError`` if files are missing."""
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
    """Reads pairs of an image and a mask; a mask may be a MATLAB file.

    Args:
        pairs: (image, mask) paths.
        labels: File value → label.
        place: Name of the variable that holds the labels in a MATLAB file and, in a structure, of its field.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], labels: dict[int, int], place: tuple[str, ...]) -> None:
        super().__init__(pairs, labels)
        self.place = place

    def read_labels(self, path: Path) -> npt.NDArray[np.integer]:
        """Return the values of a mask file."""
        return read_mat(path, *self.place) if path.suffix == ".mat" else super().read_labels(path)


def read_list(path: Path) -> list[str]:
    """Return the names in a list of images, in the order of the file.

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
    """Return the folder that contains ``wanted``: ``place``, or the subfolder into which the archives unpack."""
    for inner in ("", "VOC2012", "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset", "dataset"):
        if (place / inner / wanted).is_dir():
            return place / inner
    raise InputError(f"{place} holds no folder {wanted}")


def _found(root: Path, names: Iterable[str], others: list[tuple[Path, str]]) -> list[tuple[Path, Path]]:
    """Return the image and mask of each name; the mask comes from the first folder that has one."""
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
    """Read a mask from a MATLAB file: a variable, or a field of a structure.

    Raises:
        InputError: If the file cannot be read, or does not contain the variable or field.
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
