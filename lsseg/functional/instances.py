"""Crops and pastes masks on R×R grids in boxes, and matches detections to objects as COCO's evaluator does.

Legend: n boxes (left, top, right, bottom edges in pixels) or detections and m objects of one class in one image, H×W
pixels, R×R cells, T thresholds of overlap. Pixel i covers [i, i + 1). A mask that is cropped and pasted back therefore
stays where it was, to a fraction of a pixel.
"""

import numpy as np
import numpy.typing as npt
import torch
from skimage.measure import find_contours
from torch import Tensor
from torchvision.ops import roi_align

from lsseg.functional import blocks

# On devices other than a CPU, masks whose images have at most this many pixels in total are pasted together.
AT_ONCE = 2**27


def crop_objects(layers: Tensor, layer: Tensor, objects: Tensor, boxes: Tensor, resolution: int) -> Tensor:
    """Return the share of every cell of every box that the box's object covers.

    Args:
        layers: L×H×W integers. Object k covers the pixels where ``layers[layer[k]] == k + 1``.
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
    """Return the masks φ > 0 of whole images, given φ on the boxes' grids (bilinear between the cells' centres).

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
    """Paste mask by mask, and compute values only at the pixels of the mask's box."""
    masks = torch.zeros(len(phi), *size, dtype=torch.bool, device=phi.device)
    for mask, plane, rows, columns in zip(masks, phi, *_spans(boxes, size), strict=True):
        y, x = slice(*rows[:2].int().tolist()), slice(*columns[:2].int().tolist())
        mask[y, x] = _weights(rows, len(plane), y) @ plane @ _weights(columns, len(plane), x).T > 0
    return masks


def _all_at_once(phi: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste as many masks at a time as fit, at all pixels of the images, so that nothing waits for the device."""
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
    """Return rows and columns of every box, n×4 each: the first pixel, the last pixel + 1, and the box's two edges.

    A span holds the pixels whose centre is in the box. If there is none, it holds the pixel at the box's centre.
    """
    spans = []
    for low, high, length in ((boxes[:, 1], boxes[:, 3], size[0]), (boxes[:, 0], boxes[:, 2], size[1])):
        first, last = low.round(), high.round()
        first = torch.where(last <= first, ((low + high) / 2).floor(), first).clamp(0, length - 1)
        last = torch.minimum(torch.maximum(last, first + 1), torch.full_like(last, length))
        spans.append(torch.stack([first, last, low, high], 1))
    return spans[0], spans[1]


def _weights(span: Tensor, cells: int, pixels: slice) -> Tensor:
    """Return the weights of a box's cells at the pixel centres along one axis, linear in between; …×pixels×cells."""
    low, high = span[..., 2:3], span[..., 3:4]
    centre = torch.arange(pixels.start, pixels.stop, device=span.device) + 0.5
    place = ((centre - low) * (cells / (high - low).clamp_min(1e-6)) - 0.5).clamp(0, cells - 1)
    return (1 - (place[..., None] - torch.arange(cells, device=span.device)).abs()).clamp_min(0)


def subpixel_contours(phi: npt.NDArray[np.floating], box: npt.NDArray[np.floating]) -> list[npt.NDArray[np.float64]]:
    """Return one object's contours φ = 0, closed at the box's edge, to a fraction of a pixel by marching squares.

    Args:
        phi: R×R on the box's grid, positive inside.
        box: Left, top, right, bottom edge in pixels.

    Returns:
        Each contour as points × 2 (x, y), in pixels. Pixel i covers [i, i + 1).

    >>> contour, = subpixel_contours(np.ones((2, 2)), np.array([1.0, 0.0, 3.0, 4.0]))
    >>> contour.min(0), contour.max(0)
    (array([1., 0.]), array([3., 4.]))
    """
    # The ring around the grid gets the edge's absolute values times -1, so that the contour runs on the edge.
    padded = np.pad(np.asarray(phi, np.float64), 1, mode="edge")
    ring = np.ones(padded.shape, bool)
    ring[1:-1, 1:-1] = False
    padded[ring] = -np.abs(padded[ring])
    size = np.array([box[2] - box[0], box[3] - box[1]]) / (padded.shape[1] - 2)
    return [np.array(box[:2]) + (line[:, ::-1] - 0.5) * size for line in find_contours(padded, 0.0)]


THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# States of a detection at a threshold: it found no object, it found one, or it does not count (it found a crowd).
INVENTED, FOUND, IGNORED = 0, 1, 2
Floats = npt.NDArray[np.float64]


def match_detections(
    overlap: Floats, crowd: npt.NDArray[np.bool_], thresholds: Floats = THRESHOLDS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Match detections to objects as COCO does: each detection, best first, takes the free object it overlaps most.

    Args:
        overlap: n×m IoU (for a crowd, the covered share of the detection), with detections in order of falling score.
        crowd: m bool. A crowd may be taken any number of times, but only if no other object can be taken.
        thresholds: T, the least overlap of a match.

    Returns:
        The object of every detection, T×n (-1 for none), and its state, T×n (invented, found or ignored).

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
                    # Among equal overlaps COCO's evaluator takes the last.
                    best = usable[::-1][np.argmax(overlap[d, usable[::-1]])]
                    chosen[t, d], what[t, d] = best, kind
                    free[best] = False
                    break
    return chosen, what


def average_precision(
    scores: Floats, what: npt.NDArray[np.int8], objects: float, weights: Floats | None = None
) -> Floats:
    """Return COCO's average precision of a class at every threshold: the mean precision envelope at 101 recalls.

    Args:
        scores: n scores of the detections of all images.
        what: T×n states of the detections, from :func:`match_detections`.
        objects: Number of objects that are to be found.
        weights: n, how often the image of each detection counts (also in ``objects``). None counts every image once.

    Returns:
        T numbers, which are NaN if there is nothing to be found.
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
