"""Computes predictions for images too large for one pass through a network, and from several views of an image."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from lsseg.models.level_set_rcnn import Detections, LevelSetRCNN, Masks, Pyramid


def sliding_window(network: Callable[[Tensor], Tensor], image: Tensor, size: int) -> Tensor:
    """Return the scores of a large image from overlapping square windows; this joins the rows of :func:`bands`.

    >>> sliding_window(lambda x: 2 * x, torch.ones(1, 3, 50, 70), 32).mean()
    tensor(2.)
    """
    total: Tensor | None = None
    for rows, scores in bands(network, image, size):
        if total is None:
            total = scores.new_empty(*scores.shape[:2], *image.shape[-2:])
        total[:, :, rows] = scores
    assert total is not None
    return total


def bands(network: Callable[[Tensor], Tensor], image: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Compute the scores of a large image from overlapping square windows, some rows at a time.

    Windows advance by two thirds of their size. The last window of a row or column is moved back inside, so that every
    window is full (an image smaller than a window is one window). Scores are averaged where windows overlap. A window's
    weight falls towards its edges, where a network sees least of the surroundings, so that no seams show.

    Args:
        network: Maps B×3×h×w to B×C×h×w scores.
        image: B×3×H×W, of any type that the network takes.
        size: Side of a window in pixels.

    Yields:
        Rows and their B×C×rows×W scores, from top to bottom. Memory holds the rows of one window only.
    """
    height, width = image.shape[-2:]
    tops = _starts(height, size)
    before: tuple[Tensor, Tensor] | None = None  # sums and weights of the rows that the next windows also cover
    for top, end in zip(tops, [*tops[1:], height], strict=True):
        total: Tensor | None = None
        for left in _starts(width, size):
            columns = slice(left, left + size)
            scores = network(image[..., top : top + size, columns])
            if total is None:
                total, weight = _begun(before, scores, width)
            ramp = _ramp(scores.shape[-2], scores)[:, None] * _ramp(scores.shape[-1], scores)
            total[..., columns] += scores * ramp
            weight[:, columns] += ramp
        assert total is not None
        done = end - top
        yield slice(top, end), total[:, :, :done] / weight[:done]
        before = total[:, :, done:], weight[done:]


def _begun(before: tuple[Tensor, Tensor] | None, scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the sums and weights for a row of windows, with the shares of the windows above already added."""
    rows = scores.shape[-2]
    total, weight = scores.new_zeros(*scores.shape[:-1], width), scores.new_zeros(rows, width)
    if before is not None:
        shared = len(before[1])
        total[:, :, :shared], weight[:shared] = before
    return total, weight


def _ramp(length: int, like: Tensor) -> Tensor:
    """Return triangular weights, which are 1 in the middle and smallest, but positive, at the ends."""
    place = torch.arange(length, device=like.device, dtype=like.dtype)
    return (torch.minimum(place, length - 1 - place) + 1) / ((length + 1) // 2)


def _starts(length: int, size: int) -> list[int]:
    last = max(length - size, 0)
    step = max(1, 2 * size // 3)
    return [*range(0, last, step), last]


def mean_of_views(network: Callable[[Tensor], Tensor], image: Tensor, flip: bool, scales: Sequence[float]) -> Tensor:
    """Return the mean of the scores over several sizes of an image, with or without their mirror images.

    Scores are averaged, not probabilities, so that the mean of level-set functions is again a level-set function.

    Args:
        network: Maps B×3×h×w to B×C×h×w scores.
        image: B×3×H×W.
        flip: Whether the mirrored image is used, too.
        scales: Factors of the image's size.

    Returns:
        B×C×H×W scores.

    >>> mean_of_views(lambda x: 2 * x, torch.ones(1, 3, 5, 7), True, (0.5, 1.0)).mean()
    tensor(2.)
    """
    height, width = image.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        same = size == (height, width)
        seen = image if same else F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=scale < 1)
        for mirrored in (False, True) if flip else (False,):
            scores = network(seen.flip(-1)).flip(-1) if mirrored else network(seen)
            if not same:
                scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
            total = scores if total is None else total + scores
    assert total is not None
    return total / (len(scales) * (1 + flip))


class _View(NamedTuple):
    """Holds one view of an image: the image resized by a factor, and mirrored or not."""

    batch: Any
    pyramid: Pyramid
    factor: tuple[float, float]  # of x and y
    width: int
    flipped: bool

    def to_view(self, boxes: Tensor) -> Tensor:
        """Map boxes of the image to the view."""
        x, y = self.factor
        scaled = boxes * boxes.new_tensor([x, y, x, y])
        return _mirrored(scaled, self.width) if self.flipped else scaled

    def from_view(self, boxes: Tensor) -> Tensor:
        """Map boxes of the view to the image."""
        x, y = self.factor
        straight = _mirrored(boxes, self.width) if self.flipped else boxes
        return straight / boxes.new_tensor([x, y, x, y])


def detect_augmented(net: LevelSetRCNN, image: Tensor, flip: bool, scales: Sequence[float]) -> Detections:
    """Return the objects that are found in several views of an image.

    Boxes of all views are joined by non-maximum suppression, class by class. The masks of the remaining boxes are
    computed in every view, and their level-set functions φ⁰ and φᴺ are averaged.

    Args:
        net: The network.
        image: 3×H×W in [0, 1].
        flip: Whether the mirrored image is used, too, at each scale.
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
