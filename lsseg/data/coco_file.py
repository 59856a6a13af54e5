"""Reads and checks COCO annotation files: images, categories, and the masks of objects.

Legend: H×W pixels.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from lsseg.errors import ArgumentError, InputError, refuse_all

KEYS = ("images", "annotations", "categories")
FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
WORDS = {int: "a whole number", str: "text"}
# A coordinate beyond this multiple of the longer image side is a mistake, and would crash the filling of polygons.
FAR = 4


class CocoFile:
    """Holds the content of a COCO annotation file, after checking the entries that lsseg needs.

    Args:
        path: The JSON file.

    Attributes:
        images: Entries of the images.
        categories: Entries of the categories, sorted by id.
        annotations: Image id → annotations of the image.

    Raises:
        InputError: If the file is missing, is no JSON, lacks images, annotations or categories, or contradicts itself;
            the message lists the problems.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not JSON: {error}") from error
        for key in KEYS:
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise InputError(f"{path} is not a COCO instance file: it lacks the list `{key}`")
        content["images"] = [self.named(entry) for entry in content["images"]]
        refuse_all(str(path), [f"{path}: {problem}" for key in KEYS for problem in _improper(key, content[key])])
        self.images: list[dict[str, Any]] = content["images"]
        self.categories = sorted(content["categories"], key=lambda category: category["id"])
        refuse_all(str(path), [f"{path}: {problem}" for problem in _contradictions(content)])
        self.annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            self.annotations[annotation["image_id"]].append(annotation)

    def named(self, entry: Any) -> Any:
        """Return an image's entry with ``file_name``; a subclass overrides this if its format has another key."""
        return entry

    def used(self) -> set[int]:
        """Return the ids of the categories that have an annotation."""
        return {annotation["category_id"] for own in self.annotations.values() for annotation in own}

    def labels(self, names: Sequence[str]) -> dict[int, int]:
        """Return category id → label, by name, because files of one data set may number categories differently.

        A name may have several ids if at most one of them has annotations: in some exports the root category has the
        name of a class.

        Raises:
            ArgumentError: If the file lacks one of the names.
            InputError: If several ids of one name have annotations.
        """
        known: dict[str, list[int]] = defaultdict(list)
        for category in self.categories:
            known[category["name"]].append(category["id"])
        used = self.used() if any(len(known[name]) > 1 for name in names if name in known) else set()
        for name in names:
            if name not in known:
                raise ArgumentError(f"categories: {self.path} has no category {name!r}; it has {', '.join(known)}")
            own = [number for number in known[name] if number in used]
            if len(own) > 1:
                raise InputError(
                    f"{self.path}: the categories {' and '.join(map(str, own))} have the same name, {name!r}, and both "
                    "have annotations: give them different names"
                )
        return {number: label for label, name in enumerate(names) for number in known[name]}


def class_names(file: CocoFile, used: set[int]) -> list[str]:
    """Return the distinct category names of a file in the order of their ids, without unused supercategories.

    Args:
        file: The annotation file.
        used: Ids of the categories that have annotations.
    """
    above = {
        category.get("supercategory")
        for category in file.categories
        if category.get("supercategory") != category["name"]
    }
    names = [category["name"] for category in file.categories]
    objects = {category["name"] for category in file.categories if category["id"] in used}
    kept = [name for name in names if name in objects or name not in above]
    return list(dict.fromkeys(kept or names))


def _improper(key: str, entries: list[Any]) -> Iterator[str]:
    """Yield the errors in the fields of single entries; turn whole numbers that are written as 1.0 into integers."""
    for entry in entries:
        for field, kind in FIELDS[key].items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if kind is int and isinstance(value, float) and value.is_integer():
                value = entry[field] = int(value)
            if not isinstance(value, kind) or isinstance(value, bool) or value == "":
                said = f"it must be {WORDS[kind]}, not {value!r}"
                yield f"an entry of `{key}` has no valid `{field}`: {said}, in {str(entry)[:80]}"
                break


def _contradictions(content: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield repeated ids and files, wrong sizes and crowd flags, and annotations of unlisted images or categories."""
    for key, field in (("images", "id"), ("images", "file_name"), ("categories", "id")):
        seen: set[Any] = set()
        for entry in content[key]:
            if entry[field] in seen:
                yield f"two entries of `{key}` have the {field} {entry[field]!r}"
            seen.add(entry[field])
    images = {entry["id"] for entry in content["images"]}
    categories = {entry["id"] for entry in content["categories"]}
    for entry in content["images"]:
        for side in ("height", "width"):
            value = entry.get(side)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                yield f"the {side} of image {entry['file_name']!r} must be a number of pixels, not {value!r}"
    for annotation in content["annotations"]:
        if annotation.get("iscrowd", 0) not in (0, 1, None):
            yield f"iscrowd of annotation {annotation.get('id')} must be 0 or 1, not {annotation['iscrowd']!r}"
        if annotation["image_id"] not in images:
            yield f"annotation {annotation.get('id')} is of an image that the file does not list"
        if annotation["category_id"] not in categories:
            category = annotation["category_id"]
            yield f"annotation {annotation.get('id')} is of the category {category}, which the file does not list"


class BrokenSegmentation(ValueError):
    """Reports a segmentation that cannot be decoded; the message is the reason."""


def checked_code(annotation: dict[str, Any], size: tuple[int, int]) -> list[Any] | dict[str, Any] | None:
    """Return the checked segmentation: polygons of at least three points, a run-length code, or None if empty.

    Args:
        annotation: Annotation of an object.
        size: H, W of the image.

    Raises:
        BrokenSegmentation: If the segmentation is neither polygons nor a run-length code, or does not fit the image.
    """
    code: Any = annotation.get("segmentation")
    if code is None or code in ([], {}, ""):
        return None
    if isinstance(code, dict) and code.keys() >= {"size", "counts"}:
        return _checked_runs(code, size)
    if not isinstance(code, list):
        raise BrokenSegmentation("it is neither a list of polygons nor a run-length code")
    if all(isinstance(part, int | float) for part in code):
        code = [code]  # one polygon that is not in a list
    polygons = [line for line in code if _is_polygon(line, FAR * max(size))]
    return polygons or None


def _is_polygon(line: Any, limit: float) -> bool:
    """Return whether the list x, y, x, y, … has at least three points; a polygon with fewer has no pixel."""
    if not isinstance(line, list) or len(line) % 2:
        raise BrokenSegmentation("it is neither a list of polygons nor a run-length code")
    try:
        points = np.asarray(line)
    except ValueError:
        points = np.asarray("")
    if len(line) and (points.ndim != 1 or points.dtype.kind not in "iuf"):
        raise BrokenSegmentation("a polygon holds values that are not numbers")
    if len(line) and np.isnan(points).any():
        raise BrokenSegmentation("a polygon holds NaN, which is not a number")
    if not (np.abs(points) <= limit).all():
        raise BrokenSegmentation("a polygon has a point far outside of the image")
    return len(line) >= 6


def _checked_runs(code: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    said = code["size"]
    if not isinstance(said, list) or [float(side) for side in said if isinstance(side, int | float)] != [*size]:
        raise BrokenSegmentation(f"its size is {said}, but its image is {list(size)} (height, width)")
    counts = code["counts"]
    runs = _runs(counts) if isinstance(counts, str | bytes) else counts
    whole = isinstance(runs, list) and all(isinstance(run, int) and not isinstance(run, bool) for run in runs)
    if not whole or any(run < 0 for run in runs):
        raise BrokenSegmentation("a run is not a whole number, or is negative")
    if sum(runs) != size[0] * size[1]:
        raise BrokenSegmentation(f"its runs sum to {sum(runs)}, but the image has {size[0] * size[1]} pixels")
    return {"size": list(size), "counts": runs}


def _runs(text: str | bytes) -> list[int]:
    """Decode COCO's runs of six bits per character; runs from the fourth on are differences to the run two before."""
    codes = [ord(letter) - 48 for letter in (text.decode("ascii", "replace") if isinstance(text, bytes) else text)]
    runs: list[int] = []
    value, shift = 0, 0
    for code in codes:
        if not 0 <= code < 64:
            raise BrokenSegmentation("its run-length code holds a character that is not allowed")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise BrokenSegmentation("its run-length code ends too early")
    return runs


def has_pixel(code: list[Any] | dict[str, Any] | None, size: tuple[int, int]) -> bool:
    """Return whether a checked segmentation has a pixel; decode only if all polygons are tiny or leave the image."""
    if code is None or isinstance(code, dict):
        return code is not None and sum(code["counts"][1::2]) > 0
    for line in code:
        x, y = np.asarray(line, float).reshape(-1, 2).T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        within = x.min() >= 0 and x.max() <= size[1] and y.min() >= 0 and y.max() <= size[0]
        if within and area >= 4:
            return True
    return bool(decoded(code, size).any())


def decoded(code: list[Any] | dict[str, Any] | None, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode a checked segmentation into a mask, H×W bool."""
    if code is None:
        return np.zeros(size, bool)
    if isinstance(code, dict):
        values = np.arange(len(code["counts"])) % 2 == 1
        return np.repeat(values, code["counts"]).reshape(size[1], size[0]).T
    mask: npt.NDArray[np.bool_] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(code, *size))).astype(bool)
    return mask
