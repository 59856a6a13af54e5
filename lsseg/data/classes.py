"""``classes.yaml``: names of classes, what stands for them in masks, and how they are shown."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lsseg.data.module import Color
from lsseg.data.source import IGNORE_INDEX
from lsseg.errors import InputError


class Classes(NamedTuple):
    """What ``classes.yaml`` says.

    Attributes:
        names: Names of the classes, in the order of their labels.
        palette: Their display colours.
        labels: Mask value → label.
        colors: Mask colour → label, where masks hold colours; then ``labels`` is not used.
        void: The values that are declared void.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    labels: dict[int, int]
    colors: dict[Color, int] | None
    void: frozenset[int]


def read_classes(path: Path) -> Classes:
    """Class names, display colours, and the map from what stands in masks to labels.

    Raises:
        InputError: If the file is missing or does not say what it should; names the file and the class.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: it lists the classes, for example `classes: [background, cell]`"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not content.keys() <= {"classes", "void"}:
        raise InputError(f"{path}: expected the keys `classes` and, if need be, `void`, not {content!r}"[:300])
    entries = _entries(path, content.get("classes"))
    void = content.get("void") or []
    void = void if isinstance(void, list) else [void]
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
            raise InputError(f"{path}: the value of class {name!r} must be a number 0..65535 of its own, not {value!r}")
        if not _is_color(color):
            raise InputError(f"{path}: the color of class {name!r} must be three numbers 0..255, not {color!r}")
        labels[value] = label
        palette.append((color[0], color[1], color[2]))
    for value in void:
        if not _is_value(value):
            raise InputError(f"{path}: void must list numbers 0..65535, not {value!r}")
        if value in labels:
            raise InputError(f"{path}: the value {value} is both void and a class")
        labels[value] = IGNORE_INDEX
    labels.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    return Classes(tuple(entries), tuple(palette), labels, None, frozenset(void))


def _by_color(path: Path, entries: dict[str, Any], coloured: dict[str, Any], void: list[Any]) -> Classes:
    """Classes of which each is a colour in the masks."""
    for name in entries:
        if name not in coloured:
            raise InputError(
                f"{path}: the class {next(iter(coloured))!r} is a colour in the masks, so {name!r} must be one, too: "
                "three numbers 0..255"
            )
    colors: dict[Color, int] = {}
    for label, (name, color) in enumerate(coloured.items()):
        if tuple(color) in colors:
            other = list(entries)[colors[color[0], color[1], color[2]]]
            raise InputError(f"{path}: the classes {other!r} and {name!r} have one colour")
        colors[color[0], color[1], color[2]] = label
    palette = tuple(colors)
    for color in void:
        if not _is_color(color) or tuple(color) in colors:
            raise InputError(f"{path}: void must list colours that are no class's, [red, green, blue], not {color!r}")
        colors[color[0], color[1], color[2]] = IGNORE_INDEX
    return Classes(tuple(entries), palette, {}, colors, frozenset())


def _entries(path: Path, classes: Any) -> dict[str, Any]:
    """Name → what is said of the class, from any of the forms that ``classes`` may have."""
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
                f"{path}: a class must have a name, not {name!r} (put words such as no, yes, null in quotes)"
            )
    return dict(pairs)


def _is_color(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_value(c) and c < 256 for c in value)


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def display_color(label: int) -> Color:
    """A display colour for a label that was given none: PASCAL VOC's bit-reversal, distinct for small labels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]
