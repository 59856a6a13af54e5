"""Reads image and mask files of any common format and depth as arrays, turned upright and in one range of values.

Legend: H×W pixels.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, UnidentifiedImageError

from lsseg.errors import InputError, require

# Scans of slides and maps exceed the size that Pillow refuses as an attack, but the user chose these files.
Image.MAX_IMAGE_PIXELS = None

ValueRange = tuple[float, float]
LOSSY = (".jpg", ".jpeg", ".jfif")  # of files whose values are not those that were saved
ORIENTATION = 0x0112  # EXIF's tag
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".avif"),
)
# Files that people take for images, but that are not read here.
OTHERS = (
    ".heic",
    ".heif",
    ".jxl",
    ".dng",
    ".cr2",
    ".nef",
    ".dcm",
    ".nii",
    ".exr",
    ".svg",
    ".svs",
    ".czi",
    ".npy",
    ".npz",
)
# For each EXIF orientation: whether to exchange rows and columns, and which axes to flip afterwards.
TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}


# Tags of TIFF, and values of them that Pillow does not treat as they mean.
SUBFILE_TYPE = 254  # its lowest bit says that a page is a smaller copy of another
BITS = 258  # of each channel
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
SEPARATE = 2  # as the planar configuration: each colour is stored as a whole image
EXTRA_SAMPLES, UNSPECIFIED = 338, 0  # a channel that is not said to be transparency
SAMPLE_FORMAT, SIGNED = 339, 2
BYTES = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
LFS = b"version https://git-lfs"  # begins the pointer that Git LFS leaves in place of a file


class UnknownFormat(InputError):
    """Says that Pillow does not know a file's format."""


def check_value_range(value_range: ValueRange | None) -> None:
    """Raise ``ArgumentError`` unless the first value of the range is below the second; None is valid."""
    if value_range is not None:
        right = value_range[0] < value_range[1]
        require(right, "value_range", list(value_range), "must be two numbers, the smaller one first")


def read_image(path: Path, value_range: ValueRange | None = None) -> npt.NDArray[np.uint8]:
    """Read an image file as H×W×3 uint8 RGB, turned upright by EXIF; grey becomes RGB, transparency is dropped.

    Args:
        path: The file.
        value_range: The values that become 0 and 255. None takes the format's own range: 0..255 for 8 bits, 0..65535
            for 16 bits, 0..1 for floating point; 32-bit integers have none. The range never depends on the pixels.

    Raises:
        InputError: If the file cannot be decoded or has several pictures, or its values have no range or exceed it.
    """
    stored, orientation, negative = _decode(path)
    pixels = _upright(stored, orientation)
    if pixels.dtype != np.uint8 or value_range is not None:
        pixels = _to_bytes(pixels, value_range, path)
    if negative:
        pixels = ~pixels
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    # A copy may be written to, and torch takes it: it does not take pixels that were flipped.
    return pixels if pixels.flags.writeable and min(pixels.strides) > 0 else np.array(pixels, order="C")


def read_mask(path: Path) -> npt.NDArray[np.integer]:
    """Read a mask file's values as they are stored: the index in a palette image, the grey value otherwise.

    Raises:
        InputError: If the file cannot be decoded, or holds colours, fractions or several channels, not indices.
    """
    try:
        image, orientation = _open(path)
    except UnknownFormat as error:
        values, orientation, _ = _by_tifffile(path, error, 1)
        return _whole_numbers(_upright(values, orientation), path)
    if image.mode == "LA":  # grey and transparency, which has no meaning in a mask
        image = image.getchannel(0)
    if _is_colored(image):
        raise InputError(
            f"mask {path} holds {image.mode} colours; expected an index or palette PNG, one value per pixel (a "
            "folder's classes.yaml may give each class its colour, NAME: [RED, GREEN, BLUE])"
        )
    return _whole_numbers(np.array(_upright(_stored(image), orientation)), path)


def _whole_numbers(values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.integer]:
    if values.dtype.kind == "f":
        whole = values.astype(np.int32)
        if not (whole == values).all():
            raise InputError(
                f"mask {path} holds values that are not whole numbers, such as {values[whole != values][0]:g}"
            )
        values = whole
    return values.astype(np.uint8) if values.dtype == bool else values


def holds_colors(path: Path) -> bool:
    """Whether a mask holds colours instead of indices.

    Raises:
        InputError: If the file is missing or no image.
    """
    try:
        return _is_colored(_open(path, load=False)[0])
    except UnknownFormat as error:
        return _by_tifffile(path, error)[0].ndim == 3


def _is_colored(image: Image.Image) -> bool:
    return image.mode not in ("L", "LA", "P", "1", "I", "F") and not image.mode.startswith("I;16")


def read_colors(path: Path) -> npt.NDArray[np.uint8]:
    """Read a mask whose labels are colours as H×W×3 uint8; colours that a lossy format has changed stay changed.

    Raises:
        InputError: If the file cannot be decoded.
    """
    image, orientation = _open(path)
    return np.array(_upright(np.asarray(image.convert("RGB")), orientation))


def color_codes(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return one number for the red, green and blue of each pixel, H×W of H×W×3: 0xRRGGBB."""
    return colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width of an image, turned upright, from the header of its file.

    Raises:
        InputError: If the file is missing, is no image or has several pictures.
    """
    try:
        image, orientation = _open(path, load=False)
    except UnknownFormat as error:
        values, orientation, _ = _by_tifffile(path, error)
        return _upright(values, orientation).shape[:2]
    width, height = image.size
    exchanged = TURNS.get(orientation, (False, ()))[0] and image.format != "TIFF"  # Pillow turns TIFF itself
    return (width, height) if exchanged else (height, width)


def turned(path: Path) -> str:
    """Return a note for messages about an image's size if EXIF turns the image; otherwise return an empty string."""
    try:
        orientation = _open(path, load=False)[1]
    except UnknownFormat as error:
        orientation = _by_tifffile(path, error)[1]
    return f" (its EXIF orientation, {orientation}, turns it as it is seen)" if orientation in TURNS else ""


def _refuse_pages(image: Any, path: Path) -> None:
    """Refuse a file of several pictures, since only the first would be read; smaller copies of it do not count."""
    whole = 0 if image.format == "TIFF" else image.n_frames
    for page in range(image.n_frames if image.format == "TIFF" else 0):
        image.seek(page)
        whole += not image.tag_v2.get(SUBFILE_TYPE, 0) & 1
    image.seek(0)
    if whole > 1:
        raise _too_many_pages(path, whole)


def _open(path: Path, load: bool = True) -> tuple[Image.Image, int]:
    """Open the file by Pillow; return the image and its EXIF orientation."""
    try:
        # Given a path, Pillow maps the file into memory and confuses rows and columns of turned grey TIFFs.
        with path.open("rb") as file, Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's file, with a preview
                _refuse_pages(image, path)
            if image.mode in ("L", "LA") and _tag(image, EXTRA_SAMPLES) == UNSPECIFIED:
                raise _too_many(path, 2)
            if load:
                image.load()  # turns a TIFF upright
            orientation = _orientation(image)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except UnidentifiedImageError as error:
        raise UnknownFormat(f"cannot decode {path}: {_instead(path)}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"cannot decode {path}: {str(error).splitlines()[0]}") from error
    return image, orientation


def _instead(path: Path) -> str:
    """Say what a file is that is no image."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            return "it is a pointer of Git LFS, which stands for the image: run `git lfs pull`"
    return "it is broken, or not an image of a known format"


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode all pixels to look for it
        return 1
    orientation = image.getexif().get(ORIENTATION, 1)
    return orientation if isinstance(orientation, int) else 1


def _tag(image: Image.Image, tag: int) -> int | None:
    """Return the first value of a tag of a TIFF, or None for other formats and absent tags."""
    found: Any = image.tag_v2.get(tag) if image.format == "TIFF" else None  # type: ignore[attr-defined]
    return found[0] if isinstance(found, tuple) else found


def _stored(image: Image.Image) -> npt.NDArray[Any]:
    """Return the values of a grey or palette image as they are stored.

    Pillow takes signed bytes for unsigned ones. It inverts the bytes and bits of a TIFF in which 0 is white; tifffile,
    and so scikit-image, writes masks of bool in this way.
    """
    values = np.asarray(image)
    if image.mode in ("1", "L"):
        if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:
            values = ~values
        if _tag(image, SAMPLE_FORMAT) == SIGNED:
            values = values.view(np.int8)
    return values


def _decode(path: Path) -> tuple[npt.NDArray[Any], int, bool]:
    """Return the file's own values, H×W or H×W×3, its EXIF orientation, and whether 0 is white in it."""
    try:
        image, orientation = _open(path, load=False)
    except UnknownFormat as error:  # Pillow knows no TIFF of 64-bit numbers, or of floating point colours
        return _by_tifffile(path, error)
    deep = _tag(image, BITS) == 16 or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    if image.mode in ("RGB", "RGBA", "LA") and deep:
        # Pillow drops the lower byte. OpenCV confuses separate planes of a TIFF, and turns it as it likes.
        return _by_tifffile(path) if image.format == "TIFF" else (_by_opencv(path), orientation, False)
    if image.mode == "RGB" and image.format == "JPEG":
        # The same values as by Pillow in a third of the time; None for a broken file, which Pillow will name.
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), BYTES)
        if pixels is not None:
            return pixels, orientation, False
    image, orientation = _open(path)
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        pixels = _stored(image)
        if image.mode == "1":
            pixels = pixels.astype(np.uint8) * 255
        if image.mode == "I" and image.format == "PNG":  # PNG has at most 16 bits
            pixels = pixels.astype(np.uint16)
        return pixels, orientation, _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO
    if image.mode == "P":  # Pillow warns when it converts palette transparency to RGB
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB")), orientation, False


def _by_tifffile(path: Path, otherwise: InputError | None = None, most: int = 4) -> tuple[npt.NDArray[Any], int, bool]:
    """Return a TIFF's own values, H×W or H×W×3, its orientation, and whether 0 is white in it.

    Args:
        path: The file.
        otherwise: The error that is raised if the file is no TIFF.
        most: The largest number of channels that is accepted.
    """
    whole: list[Any] = []
    try:
        with tifffile.TiffFile(path) as file:
            pages: list[Any] = list(file.pages)
            whole = [page for page in pages if not int(page.subfiletype or 0) & 1]
            if len(whole) > 1:
                raise _too_many_pages(path, len(whole))
            page = whole[0]
            orientation = page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1
            pixels, axes, negative = page.asarray(), page.axes, page.photometric == WHITE_IS_ZERO
    except InputError:
        raise
    except tifffile.TiffFileError as error:
        raise otherwise or InputError(f"cannot decode {path}: {error}") from error
    except Exception as error:  # a broken file may raise anything
        if whole and whole[0].planarconfig != SEPARATE:  # some compressions need the package imagecodecs
            return _by_opencv(path), 1, False  # turned upright already
        raise InputError(f"cannot decode {path}: {error}".splitlines()[0]) from error
    if axes.startswith("S"):
        pixels = np.moveaxis(pixels, 0, -1)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim > 3 or channels not in (1, 3, 4) or channels > most:
        raise _too_many(path, channels)
    if pixels.dtype == np.float16:
        pixels = pixels.astype(np.float32)
    return (pixels if pixels.ndim == 2 else pixels[..., :3]), orientation, negative


def _too_many(path: Path, channels: int) -> InputError:
    return InputError(
        f"{path} holds {channels} channels; expected grey or red, green and blue, with or without transparency"
    )


def _too_many_pages(path: Path, pages: int) -> InputError:
    return InputError(f"{path} holds {pages} pictures (pages), but must hold one: write each page to its own file")


def _by_opencv(path: Path) -> npt.NDArray[Any]:
    """Return the file's own values, H×W or H×W×3."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise InputError(f"cannot decode {path}: it is broken, or of an unknown format")
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 2:  # grey and transparency
        return pixels[..., 0]
    return pixels[..., 2::-1]  # from blue, green, red and perhaps transparency


def _upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn pixels upright by their EXIF orientation."""
    exchanged, flipped = TURNS.get(orientation, (False, ()))
    if exchanged:
        pixels = pixels.swapaxes(0, 1)
    return np.flip(pixels, flipped) if flipped else pixels


SET_RANGE = "set value_range to the values of black and white (data.value_range, or --value_range of lsseg refine)"


def _to_bytes(pixels: npt.NDArray[Any], value_range: ValueRange | None, path: Path) -> npt.NDArray[np.uint8]:
    """Scale values from their range to 0..255."""
    if value_range is None:
        own = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0, "float64": 1.0}.get(pixels.dtype.name)
        if own is None:
            raise InputError(
                f"{path} holds {pixels.dtype.name} numbers, and its format does not define their range: {SET_RANGE}"
            )
        value_range = (0.0, own)
    low, high = value_range
    least, most = pixels.min(), pixels.max()
    if not (low <= least and most <= high):
        if np.isnan(least):
            raise InputError(f"{path} holds values that are not numbers (NaN)")
        raise InputError(
            f"{path} holds values {least:g}..{most:g}; expected {low:g}..{high:g}; for other values, {SET_RANGE}"
        )
    scaled = (pixels.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled).astype(np.uint8)
