"""A user's own images and masks, without a line of Python."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lsseg.data.loading import derived_seed
from lsseg.data.module import Color, SegmentationData, Split
from lsseg.data.root import existing_root
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source, list_images, pair_up
from lsseg.errors import InputError


class FolderSegmentation(SegmentationData):
    """``images/``, ``masks/`` (index or palette PNG of the same stems) and ``classes.yaml`` in one folder.

    ``classes.yaml`` lists the class names in the order of their labels::

        classes: [background, cell, nucleus]

    or gives each its value in the mask files and its display colour::

        classes:
          background: {value: 0, color: [0, 0, 0]}
          cell: {value: 128, color: [220, 60, 60]}
        void: [255]          # values that count for nothing (255 always does)

    Splits, the first that is there: subfolders ``images/train``, ``images/val``, ``images/test`` (and the same under
    ``masks/``); lists ``train.txt``, ``val.txt``, ``test.txt`` of stems, one a line; or a seeded random split.

    Args:
        root: The folder.
        val_fraction: Share of a random split that validates.
        test_fraction: Share of a random split that is held out for the test.
        split_seed: Of the random split; it does not depend on the run's seed.
        **options: See :class:`SegmentationData`.
    """

    def __init__(
        self,
        root: str,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise InputError("data.val_fraction and data.test_fraction must be at least 0 and sum to less than 1")
        self.root = existing_root(root, root, "give the folder that holds images/, masks/ and classes.yaml")
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        names, self.palette, self.labels = read_classes(self.root / "classes.yaml")
        self.class_names = names

    def source(self, split: Split) -> Source:
        """The pairs of a split; raises ``InputError`` where folders, masks or listed images are missing."""
        images, masks = self.root / "images", self.root / "masks"
        if any((images / part).is_dir() for part in ("train", "val", "test")):
            pairs = pair_up(list_images(images / split), masks / split)
        else:
            pairs = pair_up(self._listed(split, list_images(images)), masks)
        return FilePairs(pairs, self.labels)

    def _listed(self, split: Split, images: list[Path]) -> list[Path]:
        listing = self.root / f"{split}.txt"
        if listing.is_file():
            by_stem = {path.stem: path for path in images}
            names = [line.strip() for line in listing.read_text(errors="replace").splitlines() if line.strip()]
            stems = [name if name in by_stem else Path(name).stem for name in names]
            for name, stem in zip(names, stems, strict=True):
                if stem not in by_stem:
                    raise InputError(f"{listing} names {name!r}, but there is no such image in {self.root / 'images'}")
            return [by_stem[stem] for stem in stems]
        if any((self.root / f"{other}.txt").is_file() for other in ("train", "val", "test")):
            raise InputError(f"{listing} is missing: give all of train.txt, val.txt and test.txt, or none")
        order = np.random.default_rng(derived_seed(self.split_seed)).permutation(len(images))
        first, second = (round(len(images) * share) for share in (self.val_fraction, self.test_fraction))
        chosen = {"val": order[:first], "test": order[first : first + second], "train": order[first + second :]}
        return [images[i] for i in sorted(chosen[split])]


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...], dict[int, int]]:
    """Class names, display colours and the map from mask value to label.

    Raises:
        InputError: If the file is missing or does not say what it should; names the file and the class.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: it lists the classes, for example `classes: [background, cell]`"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not content.keys() <= {"classes", "void"}:
        raise InputError(f"{path}: expected the keys `classes` and, if need be, `void`, not {content!r}"[:300])
    entries = _entries(path, content.get("classes"))
    labels: dict[int, int] = {}
    colors: list[Color] = []
    for label, (name, entry) in enumerate(entries.items()):
        value, color = entry.get("value", label), entry.get("color", display_color(label))
        if not _is_value(value) or value in labels:
            raise InputError(f"{path}: the value of class {name!r} must be a number 0..65535 of its own, not {value!r}")
        if not (isinstance(color, list | tuple) and len(color) == 3 and all(c in range(256) for c in color)):
            raise InputError(f"{path}: the color of class {name!r} must be three numbers 0..255, not {color!r}")
        labels[value] = label
        colors.append((color[0], color[1], color[2]))
    void = content.get("void") or []
    for value in void if isinstance(void, list) else [void]:
        if not _is_value(value):
            raise InputError(f"{path}: void must list numbers 0..65535, not {value!r}")
        if value in labels:
            raise InputError(f"{path}: the value {value} is both void and a class")
        labels[value] = IGNORE_INDEX
    labels.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    return tuple(entries), tuple(colors), labels


def _entries(path: Path, classes: Any) -> dict[str, dict[str, Any]]:
    """Name → value and colour, from any of the forms that ``classes`` may have."""
    if isinstance(classes, list):
        for name in classes:
            if classes.count(name) > 1:
                raise InputError(f"{path}: the class {name!r} is listed twice")
        pairs: list[tuple[Any, Any]] = [(name, {}) for name in classes]
    else:
        pairs = list(classes.items()) if isinstance(classes, dict) else []
    if len(pairs) < 2:
        raise InputError(f"{path}: `classes` must list two or more different classes")
    entries = {}
    for name, entry in pairs:
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{path}: a class must have a name, not {name!r} (put words such as no, yes, null in quotes)"
            )
        entry = {"value": entry} if isinstance(entry, int) else entry or {}
        if not isinstance(entry, dict) or not entry.keys() <= {"value", "color"}:
            raise InputError(f"{path}: class {name!r} may have a value and a color, not {entry!r}")
        entries[name] = entry
    return entries


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def display_color(label: int) -> Color:
    """A display colour for a label that was given none: PASCAL VOC's bit-reversal, distinct for small labels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]
