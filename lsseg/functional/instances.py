"""Boxes, the R×R grids in them, and which detection found which object, as COCO's evaluator decides.

Legend: n boxes (left, top, right, bottom edges in pixels) or detections and m objects of one class in one image, H×W
pixels, R×R cells, T thresholds of overlap, R radii, C classes. Pixel i covers [i, i + 1): a mask that is cut out and
pasted back stays where it was, to a fraction of a pixel.
"""

import numpy as np
import numpy.typing as npt
import torch
from skimage.measure import find_contours
from torch import Tensor
from torchvision.ops import roi_align

from lsseg.functional import blocks

# Pixels of the images that masks are pasted into together, on a device that is not to be kept waiting.
AT_ONCE = 2**27


def crop_objects(layers: Tensor, layer: Tensor, objects: Tensor, boxes: Tensor, resolution: int) -> Tensor:
    """How much of every cell of every box an object covers.

    Args:
        layers: L×H×W integers; object k is where ``layers[layer[k]] == k + 1``.
        layer: Layer of every object.
        objects: n, the object of each box.
        boxes: n×4.
        resolution: R.

    Returns:
        n×R×R float32 in [0, 1].
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, resolution, resolution, dtype=torch.float32)
    chosen, place = torch.unique(objects, return_inverse=True)
    masks = (layers[layer[chosen]] == (chosen + 1)[:, None, None]).float()
    rois = torch.cat([place[:, None].to(boxes), boxes], 1).float()
    return roi_align(masks[:, None], rois, (resolution, resolution), 1.0, aligned=True)[:, 0].clamp_(0, 1)


def paste_masks(phi: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks φ > 0 of whole images, from φ on the grids of boxes (bilinear between the cells' centres).

    Args:
        phi: n×R×R, positive inside.
        boxes: n×4.
        size: H, W.

    Returns:
        n×H×W bool.

    >>> paste_masks(torch.ones(1, 2, 2), torch.tensor([[1.0, 0.0, 3.0, 1.0]]), (2, 4)).int().tolist()
    [[[0, 1, 1, 0], [0, 0, 0, 0]]]
    """
    paste = _one_by_one if blocks.in_cache(phi.device) else _all_at_once
    return paste(phi.float(), boxes.float(), size)


def _one_by_one(phi: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """No more of each image than its box is looked at."""
    masks = torch.zeros(len(phi), *size, dtype=torch.bool, device=phi.device)
    for mask, plane, rows, columns in zip(masks, phi, *_spans(boxes, size), strict=True):
        y, x = slice(*rows[:2].int().tolist()), slice(*columns[:2].int().tolist())
        mask[y, x] = _weights(rows, len(plane), y) @ plane @ _weights(columns, len(plane), x).T > 0
    return masks


def _all_at_once(phi: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole images, so many at a time as fit: nothing is asked of the device."""
    masks = []
    count = max(1, AT_ONCE // (size[0] * size[1]))
    for start in range(0, len(phi), count):
        part = slice(start, start + count)
        inside, weights = [], []
        for span, length in zip(_spans(boxes[part], size), size, strict=True):
            place = torch.arange(length, device=phi.device)
            inside.append((place >= span[:, :1]) & (place < span[:, 1:2]))
            weights.append(_weights(span, phi.shape[-1], slice(0, length)))
        values = weights[0] @ phi[part] @ weights[1].mT
        masks.append((values > 0) & inside[0][:, :, None] & inside[1][:, None])
    return torch.cat(masks) if masks else torch.zeros(0, *size, dtype=torch.bool, device=phi.device)


def _spans(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows and columns of every box, n×4 each: the first and the last but one pixel, and the box's edges.

    Pixels whose centre is in the box are in the span; of a box too small for one, the pixel that it is in.
    """
    spans = []
    for low, high, length in ((boxes[:, 1], boxes[:, 3], size[0]), (boxes[:, 0], boxes[:, 2], size[1])):
        first, last = low.round(), high.round()
        first = torch.where(last <= first, ((low + high) / 2).floor(), first).clamp(0, length - 1)
        last = torch.minimum(torch.maximum(last, first + 1), torch.full_like(last, length))
        spans.append(torch.stack([first, last, low, high], 1))
    return spans[0], spans[1]


def _weights(span: Tensor, cells: int, pixels: slice) -> Tensor:
    """Shares of a box's cells in the values at pixel centres, bilinear between the cells' centres; …×pixels×cells."""
    low, high = span[..., 2:3], span[..., 3:4]
    centre = torch.arange(pixels.start, pixels.stop, device=span.device) + 0.5
    place = ((centre - low) * (cells / (high - low).clamp_min(1e-6)) - 0.5).clamp(0, cells - 1)
    return (1 - (place[..., None] - torch.arange(cells, device=span.device)).abs()).clamp_min(0)


def subpixel_contours(phi: npt.NDArray[np.floating], box: npt.NDArray[np.floating]) -> list[npt.NDArray[np.float64]]:
    """Contours φ = 0 of one object to a fraction of a pixel, by marching squares, closed at the box's edge.

    Args:
        phi: R×R on the box's grid, positive inside.
        box: Left, top, right, bottom edge in pixels.

    Returns:
        Each contour as points × 2 (x, y) in pixels, pixel i covering [i, i + 1).

    >>> contour, = subpixel_contours(np.ones((2, 2)), np.array([1.0, 0.0, 3.0, 4.0]))
    >>> contour.min(0), contour.max(0)
    (array([1., 0.]), array([3., 4.]))
    """
    # What lies beyond the edge is as far outside as the edge is inside, so that the contour runs on the edge.
    padded = np.pad(np.asarray(phi, np.float64), 1, mode="edge")
    ring = np.ones(padded.shape, bool)
    ring[1:-1, 1:-1] = False
    padded[ring] = -np.abs(padded[ring])
    size = np.array([box[2] - box[0], box[3] - box[1]]) / (padded.shape[1] - 2)
    return [np.array(box[:2]) + (line[:, ::-1] - 0.5) * size for line in find_contours(padded, 0.0)]


THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# What a detection is at a threshold: nothing was there; an object was found; or it counts for nothing (a crowd).
INVENTED, FOUND, IGNORED = 0, 1, 2
Floats = npt.NDArray[np.float64]


def match_detections(
    overlap: Floats, crowd: npt.NDArray[np.bool_], thresholds: Floats = THRESHOLDS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """COCO's greedy matching: each detection, best first, takes the object that it overlaps most.

    Args:
        overlap: n×m IoU (with a crowd: over the detection's area), detections by falling score.
        crowd: m; such an object may be taken any number of times, and only where no other is.
        thresholds: T, the least overlap.

    Returns:
        The object of every detection, T×n (-1 for none), and what the detection is, T×n.

    >>> match_detections(np.array([[0.8, 0.6], [0.7, 0.0]]), np.array([False, False]), np.array([0.5]))[0]
    array([[ 0, -1]])
    """
    count, objects = overlap.shape
    chosen = np.full((len(thresholds), count), -1, np.int64)
    what = np.full((len(thresholds), count), INVENTED, np.int8)
    for t, threshold in enumerate(thresholds):
        free = np.ones(objects, bool)
        for d in range(count):
            for candidates, kind in ((free & ~crowd, FOUND), (crowd, IGNORED)):
                usable = np.flatnonzero(candidates & (overlap[d] >= min(threshold, 1 - 1e-10)))
                if len(usable):
                    # Of equals the evaluator takes the last.
                    best = usable[::-1][np.argmax(overlap[d, usable[::-1]])]
                    chosen[t, d], what[t, d] = best, kind
                    free[best] = False
                    break
    return chosen, what


def average_precision(
    scores: Floats, what: npt.NDArray[np.int8], objects: float, weights: Floats | None = None
) -> Floats:
    """COCO's average precision of one class at every threshold: the mean of the precision envelope at 101 recalls.

    Args:
        scores: n, of all images.
        what: T×n, see :func:`match_detections`.
        objects: How many there are to be found.
        weights: n, how often the image of each detection counts (``objects`` then counts alike); None is once.

    Returns:
        T; NaN where there is nothing to be found.
    """
    if objects <= 0:
        return np.full(len(what), np.nan)
    order = np.argsort(-scores, kind="stable")
    weight = np.ones(len(scores)) if weights is None else weights[order]
    found = ((what[:, order] == FOUND) * weight).cumsum(1)
    invented = ((what[:, order] == INVENTED) * weight).cumsum(1)
    precision = found / np.maximum(found + invented, np.finfo(float).tiny)
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    result = np.zeros(len(what))
    for t in range(len(what)):
        place = np.searchsorted(found[t] / objects, RECALLS, side="left")
        result[t] = np.where(place < len(scores), np.append(envelope[t], 0.0)[np.minimum(place, len(scores))], 0).mean()
    return result
