"""Test-time flip and scales for LevelSet R-CNN: one set of boxes from all views, masks averaged over them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from lsseg.models.level_set_rcnn import Detections, LevelSetRCNN, Masks, Pyramid


class _View(NamedTuple):
    """An image seen through one augmentation."""

    batch: Any
    pyramid: Pyramid
    factor: tuple[float, float]  # of x and y
    width: int
    flipped: bool

    def to_view(self, boxes: Tensor) -> Tensor:
        """Boxes of the image in the view."""
        x, y = self.factor
        scaled = boxes * boxes.new_tensor([x, y, x, y])
        return _mirrored(scaled, self.width) if self.flipped else scaled

    def from_view(self, boxes: Tensor) -> Tensor:
        """Boxes of the view in the image."""
        x, y = self.factor
        straight = _mirrored(boxes, self.width) if self.flipped else boxes
        return straight / boxes.new_tensor([x, y, x, y])


def detect_augmented(net: LevelSetRCNN, image: Tensor, flip: bool, scales: Sequence[float]) -> Detections:
    """The objects of an image by several views of it.

    Boxes of all views are joined by non-maximum suppression, class by class; the masks of what is left are computed in
    every view, and their level-set functions, φ⁰ and φᴺ, averaged.

    Args:
        net: The network.
        image: 3×H×W in [0, 1].
        flip: Whether each scale is also seen mirrored.
        scales: Factors of the image's size.
    """
    views = [
        _view(net, image, scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))
    ]
    found = [net.detect(view.batch, view.pyramid) for view in views]
    boxes = torch.cat([view.from_view(own[0][0]) for view, own in zip(views, found, strict=True)])
    scores, labels = (torch.cat([own[i][0] for own in found]) for i in (1, 2))
    kept = batched_nms(boxes, scores, labels, net.boxes.nms_thresh)[: net.boxes.detections_per_img]
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    initial: list[Tensor] = []
    final: list[Tensor] = []
    for view in views:
        masks = net.final_masks(view.pyramid, 0, view.to_view(boxes), labels)
        for planes, own in ((initial, masks.initial), (final, masks.final)):
            planes.append(own.flip(2) if view.flipped else own)
    return Detections(boxes, scores, labels, Masks(torch.stack(initial).mean(0), torch.stack(final).mean(0)))


def _view(net: LevelSetRCNN, image: Tensor, scale: float, flipped: bool) -> _View:
    height, width = image.shape[-2:]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    seen = image if scale == 1 else F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    batch = net.encoder.batch([seen.flip(2) if flipped else seen])
    factor = (size[1] / width, size[0] / height) if scale != 1 else (1.0, 1.0)
    return _View(batch, net.pyramid(batch), factor, seen.shape[-1], flipped)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], 1)
