"""Transforms an image and its mask together before they join a batch.

Geometric steps change both; colour steps change only the image. Where the image is padded, the mask is void (a label
map) or 0 (a map of instances).
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lsseg.data.source import IGNORE_INDEX

Pixels = npt.NDArray[np.uint8]  # H×W×3
Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
GREY = 124  # mean of natural images; normalisation turns this padding into about 0


class Resize(nn.Module):
    """Resizes to a fixed size (``size``), then by a random factor from ``scale`` that keeps the aspect ratio.

    Masks are sampled at pixel centres. (torchvision's own mask resizing samples at pixel corners, which shifts every
    contour by up to half a pixel against the image.)
    """

    def __init__(self, size: tuple[int, int] | None = None, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.size = size
        self.scale = scale

    def draw(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that an image of H×W is to have."""
        height, width = self.size or (height, width)
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(())) if high > low else low
        return round(height * factor), round(width * factor)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Resize a 3×H×W image and its (L×)H×W mask to the same size."""
        return _resized(image, mask, self.draw(image.shape[-2], image.shape[-1]))


class ShortSide(nn.Module):
    """Resizes the shorter side to a length drawn from a range, or less if the longer side would exceed a limit.

    Args:
        low: Smallest length in pixels.
        high: Largest length in pixels.
        longest: Limit of the longer side in pixels; None sets no limit.
    """

    def __init__(self, low: int, high: int, longest: int | None = None) -> None:
        super().__init__()
        self.low, self.high, self.longest = low, high, longest

    def draw(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that an image of H×W is to have."""
        side = self.low + int(torch.randint(self.high - self.low + 1, ())) if self.high > self.low else self.low
        factor = side / min(height, width)
        if self.longest is not None:
            factor = min(factor, self.longest / max(height, width))
        return round(height * factor), round(width * factor)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Resize a 3×H×W image and its (L×)H×W mask to the same size."""
        return _resized(image, mask, self.draw(image.shape[-2], image.shape[-1]))


class ResizedCrop(nn.Module):
    """Cuts out of an image what a random crop of its resized form shows, and resizes only that.

    Args:
        resize: Draws the size of the whole image.
        crop: Height, width of the crop. A resized image that is smaller is padded.
        nothing: Value of the mask where the image is padded.
    """

    def __init__(self, resize: Resize | ShortSide, crop: tuple[int, int], nothing: int) -> None:
        super().__init__()
        self.resize, self.crop = resize, crop
        fill = {tv_tensors.Image: GREY, tv_tensors.Mask: nothing}
        self.pad = v2.RandomCrop(crop, pad_if_needed=True, fill=fill)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Crop a 3×H×W image and its (L×)H×W mask in the same place."""
        shape = image.shape[-2:]
        windows, sizes = zip(*map(_window, shape, self.resize.draw(*shape), self.crop), strict=True)
        resized = _resized(image[..., *windows], mask[..., *windows], sizes)
        cropped: tuple[Tensor, Tensor] = self.pad(*resized)
        return cropped


def _window(length: int, resized: int, crop: int) -> tuple[slice, int]:
    """Return the part of an axis that a random crop of its resized form shows, and the length that it is to have."""
    if resized <= crop:
        return slice(None), resized
    shown = max(1, round(length * crop / resized))
    start = int(torch.randint(length - shown + 1, ()))
    return slice(start, start + shown), crop


class Colors(nn.Module):
    """Changes brightness, contrast, saturation and hue at random, in random order, as torchvision's ``ColorJitter``.

    Bytes are changed by OpenCV in an eighth of torchvision's time, and to about the same level. Torchvision itself
    changes images of other numbers, which somebody's own data set may have.

    Args:
        strength: Largest change of the first three, as a share; that of the hue, a share of the circle, is a fifth.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.of_numbers = v2.ColorJitter(strength, strength, strength, strength / 5)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Change the colours of a 3×H×W image, and return the mask as it is."""
        if image.dtype != torch.uint8:
            return self.of_numbers(image), mask
        pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
        changes = self.strength * (2 * torch.rand(4) - 1)
        for place in torch.randperm(4).tolist():
            change = float(changes[place])
            pixels = turn_hue(pixels, change / 5) if place == 3 else blend(pixels, 1 + change, BLENDS[place](pixels))
        return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))), mask


def blend(pixels: Pixels, factor: float, base: Pixels | float) -> Pixels:
    """Return base + factor · (pixels - base), rounded and clipped to bytes."""
    if isinstance(base, float):
        return cv2.addWeighted(pixels, factor, pixels, 0, (1 - factor) * base)
    return cv2.addWeighted(pixels, factor, base, 1 - factor, 0)


def turn_hue(pixels: Pixels, share: float) -> Pixels:
    """Turn the hue by a share of the circle, to 1/256 of it."""
    values = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    values[..., 0] += np.uint8(round(256 * share) % 256)
    return cv2.cvtColor(values, cv2.COLOR_HSV2RGB_FULL)


def _grey(pixels: Pixels) -> Pixels:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


# What brightness, contrast and saturation move the pixels away from, or towards: black, the mean grey, their grey.
BLENDS: tuple[Callable[[Pixels], Pixels | float], ...] = (
    lambda pixels: 0.0,
    lambda pixels: float(_grey(pixels).mean()),
    lambda pixels: cv2.cvtColor(_grey(pixels), cv2.COLOR_GRAY2RGB),
)


def _resized(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    shape = [max(1, side) for side in size]
    if shape == list(image.shape[-2:]):
        return tv_tensors.Image(image), tv_tensors.Mask(mask)
    exact = F.InterpolationMode.NEAREST_EXACT
    planes = mask if mask.dim() == 3 else mask[None]
    resized = F.resize_image(planes, shape, interpolation=exact)
    return (
        tv_tensors.Image(F.resize_image(image, shape, antialias=True)),
        tv_tensors.Mask(resized.view(*mask.shape[:-2], *shape)),
    )


def train_transform(
    size: tuple[int, int] | None,
    crop: tuple[int, int] | None,
    scale: tuple[float, float],
    flip: bool,
    photometric: float,
) -> Pair:
    """Return the training transform: random scale, crop, flip and colour, in an order that keeps the work small.

    Args:
        size: Height, width to which each image is resized first; None keeps each image's own size.
        crop: Height, width of the random crop; smaller images are padded with void. None crops nothing.
        scale: Smallest and largest random scale.
        flip: Whether to mirror half of the images left to right.
        photometric: Strength of the colour jitter, 0 (none) to 1.
    """
    return v2.Compose([*_augmentation(Resize(size, scale), crop, flip, photometric, IGNORE_INDEX), _to_float()])


def as_numbers(image: Tensor) -> Tensor:
    """Return an image of bytes as floating point numbers in [0, 1], and any other image unchanged.

    >>> as_numbers(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return image.float().div_(255) if image.dtype == torch.uint8 else image


def eval_transform(size: tuple[int, int] | None) -> Pair:
    """Return the evaluation transform, which resizes to ``size`` unless it is None, and has no random steps."""
    return v2.Compose([Resize(size), _to_float()])


def instance_train_transform(
    short_side: tuple[int, int] | None,
    longest: int | None,
    crop: tuple[int, int] | None,
    flip: bool,
    photometric: float,
) -> Pair:
    """Return the training transform of maps of instances (0 is no instance): random short side, crop, flip and colour.

    Args:
        short_side: Smallest and largest length of the shorter side in pixels; None keeps each image's own size.
        longest: Limit of the longer side in pixels; None sets no limit.
        crop: Height, width of the random crop; smaller images are padded. None crops nothing.
        flip: Whether to mirror half of the images left to right.
        photometric: Strength of the colour jitter, 0 (none) to 1.
    """
    size = Resize() if short_side is None else ShortSide(*short_side, longest)
    return v2.Compose([*_augmentation(size, crop, flip, photometric, 0), _to_float(torch.int32)])


def instance_eval_transform(short_side: int | None, longest: int | None) -> Pair:
    """Return the evaluation transform, which resizes the shorter side unless it is None, and has no random steps."""
    size = Resize() if short_side is None else ShortSide(short_side, short_side, longest)
    return v2.Compose([size, _to_float(torch.int32)])


def _augmentation(
    resize: Resize | ShortSide, crop: tuple[int, int] | None, flip: bool, photometric: float, nothing: int
) -> list[nn.Module]:
    """Return the steps size, crop, flip and colour; where the crop pads an image, the mask is ``nothing``."""
    steps: list[nn.Module] = [resize if crop is None else ResizedCrop(resize, crop, nothing)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if photometric > 0:
        steps.append(Colors(photometric))
    return steps


def _to_float(mask: torch.dtype = torch.int64) -> v2.ToDtype:
    kinds = {tv_tensors.Image: torch.float32, tv_tensors.Mask: mask, "others": None}
    return v2.ToDtype(kinds, scale=True)
