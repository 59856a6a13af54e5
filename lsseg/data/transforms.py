"""What happens to an image and its mask together before a batch is made.

Geometry moves both, colour the image alone; wherever the image is padded, the mask is void.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lsseg.data.source import IGNORE_INDEX

GREY = 124  # the mean of natural images: padding that normalisation turns into about 0


class Resize(nn.Module):
    """Resize to a fixed size (``size``), then by a random factor from ``scale`` that keeps the aspect ratio.

    Masks are sampled at pixel centres. (torchvision's own mask resizing samples at the corner and so shifts every
    contour by up to half a pixel against the image.)
    """

    def __init__(self, size: tuple[int, int] | None = None, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.size = size
        self.scale = scale

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Resize a 3×H×W image and its H×W mask alike."""
        height, width = self.size or image.shape[-2:]
        low, high = self.scale
        factor = low + (high - low) * float(torch.rand(())) if high > low else low
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        if size == list(image.shape[-2:]):
            return image, mask
        exact = F.InterpolationMode.NEAREST_EXACT
        return (
            tv_tensors.Image(F.resize_image(image, size, antialias=True)),
            tv_tensors.Mask(F.resize_image(mask[None], size, interpolation=exact)[0]),
        )


def train_transform(
    size: tuple[int, int] | None,
    crop: tuple[int, int] | None,
    scale: tuple[float, float],
    flip: bool,
    photometric: float,
) -> v2.Compose:
    """Random scale, crop, flip and colour, in this order (each step works on as few pixels as it can).

    Args:
        size: Resize to height, width first; None keeps each image's own size.
        crop: Height, width of the random crop; smaller images are padded with void. None crops nothing.
        scale: Least and largest random scale.
        flip: Mirror left-right half of the time.
        photometric: Strength of the colour jitter, 0 (none) to 1.
    """
    steps: list[Any] = [Resize(size, scale)]
    if crop is not None:
        fill = {tv_tensors.Image: GREY, tv_tensors.Mask: IGNORE_INDEX}
        steps.append(v2.RandomCrop(crop, pad_if_needed=True, fill=fill))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if photometric > 0:
        steps.append(v2.ColorJitter(photometric, photometric, photometric, photometric / 5))
    return v2.Compose([*steps, _to_float()])


def eval_transform(size: tuple[int, int] | None) -> v2.Compose:
    """Resize to ``size`` where one is given; nothing random."""
    return v2.Compose([Resize(size), _to_float()])


def _to_float() -> v2.ToDtype:
    kinds = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.ToDtype(kinds, scale=True)
