"""Reads PASCAL-Context (Mottaghi 2014): VOC 2010's images, fully annotated with 59 classes and background."""

import re
from pathlib import Path
from typing import Any

from lsseg.data.module import SegmentationData, Split
from lsseg.data.root import Origin, check_count, existing_root
from lsseg.data.source import IGNORE_INDEX, Source
from lsseg.data.voc import MatPairs, read_list, voc_palette
from lsseg.errors import InputError

TABLE = """
    aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person pottedplant sheep sofa
    train tvmonitor bag bed bench book building cabinet ceiling cloth computer cup door fence floor flower food grass
    ground keyboard light mountain mouse curtain platform sign plate road rock shelves sidewalk sky snow bedclothes
    track tree truck wall water window wood
"""
CLASSES = tuple(TABLE.split())
COUNTS = {"train": 4998, "val": 5105}


class PascalContext(SegmentationData):
    """Reads PASCAL-Context: ``JPEGImages/`` of VOC 2010 and the annotation in one of two forms.

    The distributed form is ``trainval/*.mat`` and ``labels.txt`` (459 labels; 59 of them are classes), with VOC 2010's
    ``ImageSets/Main/train.txt`` and ``val.txt``. The other form is ``SegmentationClassContext/*.png`` with the values 0
    (background) to 59, and ``ImageSets/SegmentationContext/train.txt`` and ``val.txt``. The test split and the
    validation split are both val. Test scores are those of the last weights, so nothing is selected on the test split.

    Args:
        root: The folder; null looks in ``$LSSEG_DATA/pascal_context``, then ``data/pascal_context``.
        background: Whether pixels outside the 59 classes have a class of their own; otherwise they are void.
        partial: Accept a split whose number of images is not the official one.
        **options: See :class:`SegmentationData`.
    """

    origin = Origin(
        "pascal_context",
        "pascal_context",
        {"trainval": 10103},
        "images under Flickr's terms; cite Mottaghi et al. 2014",
        source="host.robots.ox.ac.uk/pascal/VOC/voc2010: the folder VOC2010 of VOCtrainval_03-May-2010.tar; into it, "
        "put trainval.tar.gz (unpacked) and labels.txt from cs.stanford.edu/~roozbeh/pascal-context",
        layout={"SegmentationClassContext": 10103},
    )

    def __init__(self, root: str | None = None, background: bool = True, partial: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.background, self.partial = root, background, partial
        self.class_names = ("background", *CLASSES) if background else CLASSES
        self.palette = voc_palette(len(CLASSES) + 1)[0 if background else 1 :]

    def source(self, split: Split) -> Source:
        """Return the images of a split; raise ``InputError`` if files are missing."""
        root = existing_root(self.root, "pascal_context", "`lsseg data pascal_context` says how to get it")
        name = "train" if split == "train" else "val"
        converted = root / "SegmentationClassContext"
        lists = root / "ImageSets" / ("SegmentationContext" if converted.is_dir() else "Main")
        # A list may name an image twice, and the lists of Main may have a second column, which `read_list` ignores.
        stems = list(dict.fromkeys(read_list(lists / f"{name}.txt")))
        numbers = list(range(1, len(CLASSES) + 1)) if converted.is_dir() else _numbers(root / "labels.txt")
        folder, suffix = (converted, ".png") if converted.is_dir() else (root / "trainval", ".mat")
        pairs = [(root / "JPEGImages" / f"{stem}.jpg", folder / f"{stem}{suffix}") for stem in stems]
        images, masks = ({path.name for path in place.glob("*")} for place in (root / "JPEGImages", folder))
        for image, mask in pairs:
            for path, known in ((image, images), (mask, masks)):
                if path.name not in known:
                    raise InputError(f"{path} is missing, but {lists / name}.txt lists it")
        check_count(root, name, len(pairs), COUNTS[name], self.partial)
        first = 1 if self.background else 0
        labels = dict.fromkeys(range(460), 0 if self.background else IGNORE_INDEX) | {IGNORE_INDEX: IGNORE_INDEX}
        labels = {value: label for value, label in labels.items() if suffix == ".mat" or value in (0, IGNORE_INDEX)}
        if suffix == ".mat" and IGNORE_INDEX not in numbers:  # in .mat files 255 is one of the 459 labels
            labels[IGNORE_INDEX] = labels[0]
        labels |= {number: first + label for label, number in enumerate(numbers)}
        return MatPairs(pairs, labels, ("LabelMap",))


def _numbers(path: Path) -> list[int]:
    """Return the numbers of the 59 classes from the file of the 459 labels, with lines such as ``2: aeroplane``."""
    if not path.is_file():
        raise InputError(f"{path} is missing: it lists the label of each number in the .mat files")
    known = {
        found[2]: int(found[1]) for found in re.finditer(r"^\s*(\d+):\s*(\S+)\s*$", path.read_text(), re.MULTILINE)
    }
    for name in CLASSES:
        if name not in known:
            raise InputError(f"{path} does not list the label {name}")
    return [known[name] for name in CLASSES]
