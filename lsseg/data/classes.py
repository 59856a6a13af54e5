"""Reads the classes and their mask values from ``classes.yaml``, checks masks, and counts class frequencies."""

import hashlib
import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.progress import track

from lsseg.data.loading import check_labels
from lsseg.data.module import Color
from lsseg.data.pixels import image_size, read_mask
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source, other_size, some_of
from lsseg.errors import InputError
from lsseg.files import read_yaml, write_json


class Classes(NamedTuple):
    """Holds the content of ``classes.yaml``.

    Attributes:
        names: Names of the classes, in the order of their labels.
        palette: Display colours of the classes.
        labels: Mask value → label, for masks of values; void values have the label 255.
        colors: Mask colour → label, for masks of colours (``labels`` is then empty); None for masks of values.
        void: The values that are declared void; empty for masks of colours.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    labels: dict[int, int]
    colors: dict[Color, int] | None
    void: frozenset[int]


def read_classes(path: Path) -> Classes:
    """Return the class names, the display colours, and the map from mask values or colours to labels.

    Raises:
        InputError: If the file is missing or invalid; the message names the file and the class with the error.
    """
    if not path.exists():
        raise InputError(f"{path} is missing: it lists the classes, for example `classes: [background, cell]`")
    content = read_yaml(path)
    if not isinstance(content, dict) or not content.keys() <= {"classes", "void"}:
        raise InputError(f"{path}: expected the keys `classes` and, optionally, `void`, not {content!r}"[:300])
    entries = _entries(path, content.get("classes"))
    void = content.get("void", [])
    void = void if isinstance(void, list) else [] if void is None else [void]
    coloured = {name: entry for name, entry in entries.items() if _is_color(entry)}
    if coloured:
        return _by_color(path, entries, coloured, void)
    return _by_value(path, entries, void)


def _by_value(path: Path, entries: dict[str, Any], void: list[Any]) -> Classes:
    labels: dict[int, int] = {}
    palette: list[Color] = []
    for label, (name, entry) in enumerate(entries.items()):
        entry = {"value": entry} if isinstance(entry, int) else entry or {}
        if not isinstance(entry, dict) or not entry.keys() <= {"value", "color"}:
            raise InputError(f"{path}: class {name!r} may have a value and a color, not {entry!r}")
        value, color = entry.get("value", label), entry.get("color", display_color(label))
        if not _is_value(value) or value in labels:
            raise InputError(
                f"{path}: the value of class {name!r} must be a number 0..65535 that no other class has, not {value!r}"
            )
        if not _is_color(color):
            raise InputError(f"{path}: the color of class {name!r} must be three numbers 0..255, not {color!r}")
        labels[value] = label
        palette.append((color[0], color[1], color[2]))
    for value in void:
        if not _is_value(value):
            raise InputError(f"{path}: void must list numbers 0..65535, not {value!r}")
        if labels.get(value, IGNORE_INDEX) != IGNORE_INDEX:
            raise InputError(f"{path}: the value {value} is both void and a class")
        labels[value] = IGNORE_INDEX
    labels.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    return Classes(tuple(entries), tuple(palette), labels, None, frozenset(void))


def _by_color(path: Path, entries: dict[str, Any], coloured: dict[str, Any], void: list[Any]) -> Classes:
    """Return the classes of a file that gives every class its colour in the masks."""
    for name in entries:
        if name not in coloured:
            raise InputError(
                f"{path}: the class {next(iter(coloured))!r} has a colour in the masks, so {name!r} must have one, "
                "too: three numbers 0..255"
            )
    colors: dict[Color, int] = {}
    for label, (name, color) in enumerate(coloured.items()):
        if tuple(color) in colors:
            other = list(entries)[colors[color[0], color[1], color[2]]]
            raise InputError(f"{path}: the classes {other!r} and {name!r} have the same colour")
        colors[color[0], color[1], color[2]] = label
    palette = tuple(colors)
    for color in void:
        if not _is_color(color) or colors.get(tuple(color), IGNORE_INDEX) != IGNORE_INDEX:
            raise InputError(f"{path}: void must list colours [red, green, blue] that no class has, not {color!r}")
        colors[color[0], color[1], color[2]] = IGNORE_INDEX
    return Classes(tuple(entries), palette, {}, colors, frozenset())


def _entries(path: Path, classes: Any) -> dict[str, Any]:
    """Return the entry of each class by name, from a mapping or a list of names (the entries are then None)."""
    if isinstance(classes, list):
        for name in classes:
            if classes.count(name) > 1:
                raise InputError(f"{path}: the class {name!r} is listed twice")
        pairs: list[tuple[Any, Any]] = [(name, None) for name in classes]
    else:
        pairs = list(classes.items()) if isinstance(classes, dict) else []
    if len(pairs) < 2:
        raise InputError(f"{path}: `classes` must list two or more different classes")
    for name, _ in pairs:
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{path}: the name of a class must be non-empty text, not {name!r} (put words such as no, yes, "
                "null in quotes)"
            )
    return dict(pairs)


def _is_color(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_value(c) and c < 256 for c in value)


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def display_color(label: int) -> Color:
    """Return a default display colour, by PASCAL VOC's bit reversal; small labels have distinct colours."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


THREADS = 8  # Threads decode in parallel, because decoding releases the interpreter lock.


def look_at_pairs(source: FilePairs) -> tuple[Counter[int], list[str]]:
    """Check the size and the values of every mask, and count its labels.

    Args:
        source: The pairs of image and mask.

    Returns:
        The number of pixels of each label, where the key -1 counts the pixels that are 255 in the mask files; and the
        errors of the pairs that cannot be used.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda index: _look(source, index), range(len(source))))
    found: Counter[int] = Counter()
    for counts, _ in results:
        found.update(counts)
    return found, [problem for _, problems in results for problem in problems]


def _look(source: FilePairs, index: int) -> tuple[Counter[int], list[str]]:
    """Return the number of pixels of each label in a mask, and all problems of the pair."""
    image, path = source.pairs[index]
    found: Counter[int] = Counter()
    problems = []
    sizes = {}
    for file in (image, path):
        try:
            sizes[file] = image_size(file)
        except InputError as error:
            problems.append(str(error))
    if len(set(sizes.values())) > 1:
        problems.append(other_size(image, sizes[image], path, sizes[path]))
    if path in sizes:  # a file that is no image would be refused twice
        try:
            labels, counts = np.unique(source.read_mask(index), return_counts=True)
            found.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
            if source.colors is None and IGNORE_INDEX in found:
                found[-1] = int((read_mask(path) == IGNORE_INDEX).sum())
        except InputError as error:
            problems.append(str(error))
    return found, problems


def compare_classes(found: Counter[int], classes: Classes, said_in: Path) -> None:
    """Compare the training labels with the declared classes, and warn about absent classes or undeclared void pixels.

    Args:
        found: The counts that :func:`look_at_pairs` returns.
        classes: The declared classes.
        said_in: The file that declares the classes.

    Raises:
        InputError: If all pixels are void, or if a class has no pixel while pixels have the undeclared value 255.
    """
    absent = [name for label, name in enumerate(classes.names) if not found[label]]
    if len(absent) == len(classes.names):
        raise InputError(f"the training split cannot be used: every pixel of its masks is void ({said_in})")
    undeclared = found[-1] and IGNORE_INDEX not in classes.void and classes.labels.get(IGNORE_INDEX) == IGNORE_INDEX
    if absent and undeclared:
        raise InputError(
            f"{said_in}: no training mask has a pixel of {some_of(absent)}, but {found[-1]} pixels have the value 255, "
            f"which is ignored: write `{absent[0]}: 255` (classes: {{NAME: VALUE, …}}) if it is that class, or "
            "`void: [255]` if it is not"
        )
    if absent:
        warnings.warn(f"no training mask has a pixel of {some_of(absent)} ({said_in})", stacklevel=2)
    elif undeclared:
        warnings.warn(
            f"{found[-1]} pixels of the training masks have the value 255 and are ignored; to confirm this, write "
            f"`void: [255]` in {said_in}",
            stacklevel=2,
        )


VERSION = 1  # version of the counting; a new one makes the remembered counts invalid


def class_frequencies(source: Source, num_classes: int, progress: bool = False) -> npt.NDArray[np.float64]:
    """Return f_c = pixels of class c ÷ valid pixels of the images in which c occurs; 0 for a class that never occurs.

    Args:
        source: A split. Its images and masks are read once; of a :class:`FilePairs` only the masks are read.
        num_classes: C, the number of classes.
        progress: Whether to show a progress bar.

    Returns:
        C frequencies.

    Raises:
        InputError: If a mask cannot be used; the message names it.
    """

    def count(index: int) -> npt.NDArray[np.int64]:
        mask = source.read_mask(index) if isinstance(source, FilePairs) else source.read(index)[1]
        check_labels(source.name(index), mask, num_classes)
        return np.bincount(mask[mask != IGNORE_INDEX].astype(np.int64).ravel(), minlength=num_classes)

    own, where = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    with ThreadPoolExecutor(4) as pool:  # Decoding releases the interpreter lock.
        counts = pool.map(count, range(len(source)))
        for pixels in track(counts, "class frequencies", len(source), transient=True, disable=not progress):
            own += pixels
            where += pixels.sum() * (pixels > 0)
    return own / np.maximum(where, 1)


def remembered_frequencies(source: Source, num_classes: int) -> npt.NDArray[np.float64]:
    """Return :func:`class_frequencies`; they are stored on disk, and counted only once for the same files and classes.

    Counting shows a progress bar and takes minutes for a large split, and every run of a suite needs the frequencies.
    They are stored in ``$XDG_CACHE_HOME/lsseg`` or ``~/.cache/lsseg``, under a name made of the masks' paths, sizes and
    modification times. A user's own source is counted every time, because it may read the same files in another way.
    """
    if not isinstance(source, FilePairs) or not type(source).__module__.startswith("lsseg."):
        return class_frequencies(source, num_classes, progress=True)
    name = f"frequencies-{_fingerprint(source, num_classes)}.json"
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsseg" / name
    except RuntimeError:  # There is no home folder.
        return class_frequencies(source, num_classes, progress=True)
    try:
        known = np.array(json.loads(path.read_text()), np.float64)
        if known.shape == (num_classes,):
            return known
    except (OSError, ValueError):  # The file is missing or cannot be read, so the masks are counted.
        pass
    found = class_frequencies(source, num_classes, progress=True)
    with suppress(OSError):  # The home folder may be read-only.
        write_json(path, found.tolist())
    return found


def _fingerprint(source: FilePairs, num_classes: int) -> str:
    digest = hashlib.sha256(
        repr((VERSION, type(source).__qualname__, source.labels, source.colors, num_classes)).encode()
    )
    for _, mask in source.pairs:
        status = mask.stat()
        digest.update(f"{mask.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def median_frequency_weights(frequencies: npt.NDArray[np.float64]) -> list[float]:
    """Return w_c = median(f) / f_c over the classes that occur, else 0 (Zhang 2019, eq. 12; Eigen and Fergus 2015).

    >>> median_frequency_weights(np.array([0.5, 0.25, 0.125, 0.0]))
    [0.5, 1.0, 2.0, 0.0]
    """
    occurring = frequencies > 0
    median = np.median(frequencies[occurring]) if occurring.any() else 0.0
    weights = np.divide(median, frequencies, out=np.zeros_like(frequencies), where=occurring)
    return [float(weight) for weight in weights]
