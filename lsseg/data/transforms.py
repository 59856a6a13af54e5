"""Transforms an image and its mask together before they join a batch.

Geometric steps change both; colour steps change only the image. Where the image is padded, the mask is void (a label
map) or 0 (a map of instances).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lsseg.data.source import IGNORE_INDEX

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

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Resize a 3×H×W image and its (L×)H×W mask to the same size."""
        height, width = self.size or image.shape[-2:]
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(())) if high > low else low
        return _resized(image, mask, (round(height * factor), round(width * factor)))


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

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Resize a 3×H×W image and its (L×)H×W mask to the same size."""
        height, width = image.shape[-2:]
        side = self.low + int(torch.randint(self.high - self.low + 1, ())) if self.high > self.low else self.low
        factor = side / min(height, width)
        if self.longest is not None:
            factor = min(factor, self.longest / max(height, width))
        return _resized(image, mask, (round(height * factor), round(width * factor)))


def _resized(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    shape = [max(1, side) for side in size]
    if shape == list(image.shape[-2:]):
        return image, mask
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
    return v2.Compose([Resize(size, scale), *_augmentation(crop, flip, photometric, IGNORE_INDEX), _to_float()])


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
    return v2.Compose([size, *_augmentation(crop, flip, photometric, 0), _to_float(torch.int32)])


def instance_eval_transform(short_side: int | None, longest: int | None) -> Pair:
    """Return the evaluation transform, which resizes the shorter side unless it is None, and has no random steps."""
    size = Resize() if short_side is None else ShortSide(short_side, short_side, longest)
    return v2.Compose([size, _to_float(torch.int32)])


def _augmentation(crop: tuple[int, int] | None, flip: bool, photometric: float, nothing: int) -> list[nn.Module]:
    """Return the steps crop, flip and colour; where the crop pads an image, the mask is ``nothing``."""
    steps: list[Any] = []
    if crop is not None:
        fill = {tv_tensors.Image: GREY, tv_tensors.Mask: nothing}
        steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if photometric > 0:
        steps.append(v2.ColorJitter(photometric, photometric, photometric, photometric / 5))
    return steps


def _to_float(mask: torch.dtype = torch.int64) -> v2.ToDtype:
    kinds = {tv_tensors.Image: torch.float32, tv_tensors.Mask: mask, "others": None}
    return v2.ToDtype(kinds, scale=True)
