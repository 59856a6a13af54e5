"""Defines the protocol of sources of images and masks, and the source that reads pairs of files.

Legend: H×W pixels, C classes. Labels are 0..C-1; 255 is void.
"""

import bisect
import itertools
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from lsseg.data.pixels import (
    LOSSY,
    OTHERS,
    SUFFIXES,
    ValueRange,
    color_codes,
    read_colors,
    read_image,
    read_mask,
    turned,
)
from lsseg.errors import InputError, refuse_all

__all__ = ["IGNORE_INDEX", "FilePairs", "Source", "list_images", "pair_up", "read_image", "read_mask"]

IGNORE_INDEX = 255
Colors = dict[tuple[int, int, int], int]


class Source(Protocol):
    """Gives the images and masks of one split, and decodes each only when it is read."""

    def __len__(self) -> int:
        """Return the number of images."""

    def name(self, index: int) -> str:
        """Return the name of an image for tables, file names and error messages."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
        """Return an image, H×W×3 uint8 RGB, and its labels, H×W of any integer type."""


class FilePairs:
    """Reads images and masks from files.

    Args:
        pairs: Paths (image, mask).
        labels: File value → label, for masks whose values are not the labels; any other value is an error.
        names: Names of the images; None takes the stems of their files.
        colors: Colour → label, for masks that hold colours.
        value_range: Pixel values that become black and white (see :func:`~lsseg.data.pixels.read_image`).
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        labels: dict[int, int] | None = None,
        names: Sequence[str] | None = None,
        colors: Colors | None = None,
        value_range: ValueRange | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.labels, self.colors = labels, colors
        self.names = [image.stem for image, _ in pairs] if names is None else list(names)
        self.value_range = value_range

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return the image's name from ``names``, or the stem of its file."""
        return self.names[index]

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
        """Decode one image and its mask.

        Raises:
            InputError: If a file is corrupt, or if the mask has another size than the image, holds a value or colour
                without a label, or holds colours although ``colors`` is None.
        """
        path, mask_path = self.pairs[index]
        image, mask = read_image(path, self.value_range), self.read_mask(index)
        if image.shape[:2] != mask.shape:
            raise InputError(other_size(path, image.shape, mask_path, mask.shape))
        return image, mask

    def read_mask(self, index: int) -> npt.NDArray[np.integer]:
        """Decode one mask alone; raise the errors that :meth:`read` raises for a mask."""
        path = self.pairs[index][1]
        if self.colors is not None:
            return map_colors(read_colors(path), self.colors, path)
        mask = self.read_labels(path)
        return mask if self.labels is None else map_labels(mask, self.labels, path)

    def read_labels(self, path: Path) -> npt.NDArray[np.integer]:
        """Return the values of a mask file."""
        return read_mask(path)


def other_size(image: Path, size: Sequence[int], mask: Path, mask_size: Sequence[int]) -> str:
    """Return the message that a mask does not have its image's size."""
    return f"{image} is {size[0]}×{size[1]}{turned(image)}, but its mask {mask} is {mask_size[0]}×{mask_size[1]}"


def map_labels(mask: npt.NDArray[np.integer], labels: dict[int, int], path: Path) -> npt.NDArray[np.uint8]:
    """Replace every file value by its label.

    Raises:
        InputError: If the mask holds a value that has no label; the message names the file.
    """
    table = np.full(65537, -1, dtype=np.int32)  # the last one stands for what is out of range
    table[list(labels)] = list(labels.values())
    if mask.dtype == np.uint8:
        mapped = cv2.LUT(mask, table[:256])
    else:
        value = mask.astype(np.int64)
        mapped = table[np.where((value >= 0) & (value < 65536), value, 65536)]
    if (mapped < 0).any():
        advice = "; JPEG changes values, so masks must be PNG" if path.suffix.lower() in LOSSY else ""
        raise InputError(_unknown(path, "value", np.unique(mask[mapped < 0]).tolist(), sorted(labels)) + advice)
    return mapped.astype(np.uint8)


def map_colors(mask: npt.NDArray[np.uint8], colors: Colors, path: Path) -> npt.NDArray[np.uint8]:
    """Replace every colour of an H×W×3 mask by its label.

    Raises:
        InputError: If the mask holds a colour that has no label; the message names the file.
    """
    codes = color_codes(mask)
    known = color_codes(np.array(list(colors), np.uint8))
    order = np.argsort(known)
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    found = known[order][place] == codes
    if not found.all():
        unknown = np.unique(mask[~found], axis=0).tolist()
        raise InputError(_unknown(path, "colour", unknown, [list(color) for color in colors]))
    labels = np.array(list(colors.values()), np.uint8)
    return labels[order][place]


def _unknown(path: Path, what: str, unknown: Sequence[object], known: Sequence[object]) -> str:
    """Say which values or colours of a mask belong to no class."""
    several = len(unknown) > 1
    held = (
        f"{what}s {some_of(unknown)}, which are not classes"
        if several
        else f"{what} {unknown[0]}, which is not a class"
    )
    return f"mask {path} holds the {held}; expected {some_of(known, 40)}"


def some_of(values: Sequence[object], most: int = 8) -> str:
    """List the first values, and count the others.

    >>> some_of([3, 4, 5], 2)
    '3, 4 and 1 more'
    """
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def same_name(text: str) -> str:
    """Return a file's name in the NFC form, because systems write an accented letter as one or two characters."""
    return unicodedata.normalize("NFC", text)


def distinct_names(files: Sequence[str]) -> list[str]:
    """Return the stems of files if all differ, else their paths without suffix if those differ, else their paths.

    >>> distinct_names(["a/1.png", "b/1.png"])
    ['a/1', 'b/1']
    """
    paths = [PurePosixPath(same_name(file)) for file in files]
    for names in ([path.stem for path in paths], [path.with_suffix("").as_posix() for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [path.as_posix() for path in paths]


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden files.

    Raises:
        InputError: If the folder does not exist or holds no image.
    """
    return _sorted(folder, (path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else [])


def images_below(folder: Path) -> dict[str, Path]:
    """Return the sorted images of a folder and its subfolders, by their paths below the folder without suffix.

    Raises:
        InputError: If the folder does not exist or holds no image, or two images differ in their suffix only.
    """
    found: dict[str, Path] = {}
    problems = []
    for path in _sorted(folder, files_below(folder)):
        name = name_below(folder, path)
        if name in found:
            problems.append(f"{folder} has several files named {name}: {found[name].name} and {path.name}")
        found[name] = path
    refuse_all(str(folder), problems)
    return found


def name_below(folder: Path, path: Path) -> str:
    """Return the name of an image: its path below a folder, without suffix."""
    return same_name(path.relative_to(folder).with_suffix("").as_posix())


def files_below(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted, without hidden files and folders.

    Files of formats that are not read, such as HEIC, are left out; if there are images beside them, a warning says so.
    """
    images = [path for path in _visible(folder) if is_image(path)]
    if images and (others := not_read(folder)):
        warnings.warn(f"{folder}: {len(others)} file(s) are left out{hint_at(others)}", stacklevel=1)  # is said once
    return images


def not_read(folder: Path) -> list[str]:
    """Return the files below a folder that people take for images, but whose format is not read."""
    return [path.relative_to(folder).as_posix() for path in _visible(folder) if path.suffix.lower() in OTHERS]


def _visible(folder: Path) -> list[Path]:
    """Return what lies below a folder, sorted, without hidden files and what lies in hidden folders.

    Links to folders are followed, but not back into a folder that holds them.
    """

    def below(place: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        real = place.resolve()
        for path in () if real in above else place.iterdir():
            if not path.name.startswith("."):
                yield path
                if path.is_dir():
                    yield from below(path, (*above, real))

    return sorted(below(folder, ())) if folder.is_dir() else []


def hint_at(others: Sequence[str]) -> str:
    """Return the end of a message about files whose format is not read; it is empty if there are none."""
    return f"; their format is not read: {some_of(others, 3)}" if others else ""


def is_image(path: Path) -> bool:
    """Return whether a path has the name of a visible image file and is not a folder."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _sorted(folder: Path, paths: Iterable[Path]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    images = sorted(paths)
    if not images:
        raise InputError(f"there is no image in {folder}{hint_at(not_read(folder))}")
    return images


def pair_up(images: Sequence[Path], masks: Path) -> list[tuple[Path, Path]]:
    """Pair every image of one folder with the mask of the same stem in another folder.

    Raises:
        InputError: If an image has no mask, or two files of a folder have the same stem; the message names the file.
    """
    by_stem = {same_name(path.stem): path for path in _different(list_images(masks))}
    wanted = {image: same_name(image.stem) for image in _different(images)}
    _refuse_bare(masks, {image: f"{image.stem}.png" for image, stem in wanted.items() if stem not in by_stem})
    return [(image, by_stem[stem]) for image, stem in wanted.items()]


def _different(paths: Sequence[Path]) -> Sequence[Path]:
    """Return files of one folder, no two of which may have one stem."""
    counts = Counter(same_name(path.stem) for path in paths)
    problems = [
        f"{paths[0].parent} has several files named {stem}, so images and masks cannot be matched by name"
        for stem, count in counts.items()
        if count > 1
    ]
    refuse_all(str(paths[0].parent) if paths else "", problems)
    return paths


def _refuse_bare(masks: Path, expected: dict[Path, str]) -> None:
    """Refuse images that have no mask; ``expected`` holds the name that the mask of each should have."""
    problems = [f"{image} has no mask: expected {masks / name}" for image, name in expected.items()]
    refuse_all(f"the masks in {masks}", problems)


def matched(images: dict[str, Path], folder: Path, suffix: str) -> dict[str, tuple[Path, Path]]:
    """Pair every image with the mask of the same path below a folder of masks.

    Args:
        images: Images by path below their own folder, without suffix.
        folder: Folder of the masks.
        suffix: Text that the masks' names add to the images' names, such as ``_mask``.

    Raises:
        InputError: If an image has no mask; the message names the image.
    """
    masks = images_below(folder)
    _refuse_bare(folder, {path: f"{name}{suffix}.png" for name, path in images.items() if name + suffix not in masks})
    return {name: (path, masks[name + suffix]) for name, path in images.items()}


def without_image(images: dict[str, Path], folder: Path, suffix: str) -> list[str]:
    """Return the names of the masks that belong to no image; the arguments are those of :func:`matched`."""
    return sorted(images_below(folder).keys() - {name + suffix for name in images})


SAMPLE = 20  # images whose possible suffixes are looked at


def common_suffix(images: Sequence[str], masks: Sequence[str], folder: Path) -> str:
    """Return the text that the masks' names add to most images' names; it is empty where they are the same.

    It must be found over all splits at once: among a few images, ``1`` and ``10_mask`` look like a pair.

    Args:
        images: Names of all images, without suffix.
        masks: Names of all masks.
        folder: Folder of the masks, for messages.

    Raises:
        InputError: If the names of equally many images fit with two texts.

    >>> common_suffix(["1", "2", "10"], ["1_mask", "10_mask", "2_mask"], Path())
    '_mask'
    """
    known, ordered = set(masks), sorted(masks)
    possible = {""}
    for name in images[:: max(1, len(images) // SAMPLE)]:
        start = bisect.bisect_left(ordered, name)
        begun = itertools.takewhile(lambda mask, name=name: mask.startswith(name), ordered[start:])  # type: ignore[misc]
        possible |= {mask.removeprefix(name) for mask in begun}
    counts = {suffix: sum(name + suffix in known for name in images) for suffix in possible if "/" not in suffix}
    best = [suffix for suffix, count in counts.items() if count == max(counts.values())]
    if "" in best:
        return ""
    if len(best) > 1:
        shown = ", ".join(repr(suffix) for suffix in sorted(best)[:4])
        raise InputError(f"{folder}: several masks fit to an image (with {shown} behind its name): set mask_suffix")
    return best[0]
