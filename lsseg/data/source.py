"""Where images and masks come from: one small protocol, and the source that reads pairs of files.

Legend: H×W pixels, C classes. Labels are 0..C-1; 255 is void.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from lsseg.errors import InputError

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Source(Protocol):
    """The images and masks of one split, undecoded until asked for."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, index: int) -> str:
        """What to call the image in tables, file names and error messages."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
        """The image, H×W×3 uint8 RGB, and its labels, H×W of any integer type."""


class FilePairs:
    """Images and masks in files of the same stem.

    Args:
        pairs: (image, mask) paths.
        labels: File value → label, for masks that do not hold labels as they are; any other value is an error.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], labels: dict[int, int] | None = None) -> None:
        self.pairs = list(pairs)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Stem of the image file."""
        return self.pairs[index][0].stem

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
        """Decode one pair.

        Raises:
            InputError: If a file is corrupt, the mask is no index or palette image, or it holds an unmapped value.
        """
        return read_image(self.pairs[index][0]), self.read_mask(index)

    def read_mask(self, index: int) -> npt.NDArray[np.integer]:
        """Decode one mask alone; raises what :meth:`read` raises for it."""
        path = self.pairs[index][1]
        mask = self.read_labels(path)
        return mask if self.labels is None else map_labels(mask, self.labels, path)

    def read_labels(self, path: Path) -> npt.NDArray[np.integer]:
        """The values of a mask's file."""
        return read_mask(path)


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image file as H×W×3 uint8 RGB; grey and 16-bit images are converted, transparency is dropped.

    Raises:
        InputError: If the file cannot be decoded.
    """
    image = _decode(path)
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip at 255
        grey = np.asarray(image)
        high = grey if grey.max(initial=0) < 256 else grey // 257
        return np.repeat(high.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))  # a copy: PIL's own memory is read-only


def read_mask(path: Path) -> npt.NDArray[np.integer]:
    """A mask file's values as they are stored: the index of a palette image, the grey value otherwise.

    Raises:
        InputError: If the file cannot be decoded or holds colours instead of indices.
    """
    mask = _decode(path)
    if mask.mode not in ("L", "P", "1", "I", "I;16", "I;16B"):
        raise InputError(f"mask {path} holds {mask.mode} colours; expected an index or palette PNG, one value a pixel")
    values: npt.NDArray[np.integer] = np.array(mask)
    return values.astype(np.uint8) if values.dtype == bool else values


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot decode {path}: {str(error).splitlines()[0]}") from error
    return image


def map_labels(mask: npt.NDArray[np.integer], labels: dict[int, int], path: Path) -> npt.NDArray[np.uint8]:
    """Replace every file value by its label.

    Raises:
        InputError: If the mask holds a value that has no label; names the file.
    """
    table = np.full(65536, -1, dtype=np.int32)
    table[list(labels)] = list(labels.values())
    mapped = np.where(mask < 0, -1, table[mask.clip(0, 65535)])
    if (mapped < 0).any():
        value = int(mask[mapped < 0][0])
        known = ", ".join(map(str, sorted(labels)))
        raise InputError(f"mask {path} holds the value {value}, which is no class; the classes have {known}")
    return mapped.astype(np.uint8)


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; hidden files are skipped.

    Raises:
        InputError: If the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not images:
        raise InputError(f"there is no image in {folder}")
    return images


def pair_up(images: Sequence[Path], masks: Path) -> list[tuple[Path, Path]]:
    """Give every image the mask of the same stem.

    Raises:
        InputError: If an image has no mask, or two have the same stem; names the image.
    """
    files = list_images(masks)
    for folder, paths in ((images[0].parent if images else masks, images), (masks, files)):
        for stem, number in Counter(path.stem for path in paths).items():
            if number > 1:
                raise InputError(f"{folder} has several files named {stem}; an image and its mask belong together")
    by_stem = {path.stem: path for path in files}
    for image in images:
        if image.stem not in by_stem:
            raise InputError(f"{image} has no mask: expected {masks / (image.stem + '.png')}")
    return [(image, by_stem[image.stem]) for image in images]
