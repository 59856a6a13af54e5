"""Boxes of an image and the R×R grids in them: cutting masks out for training, pasting level sets back.

Legend: n boxes (left, top, right, bottom edges in pixels), H×W pixels, R×R cells. Pixel i covers [i, i + 1): a mask
that is cut out and pasted back stays where it was, to a fraction of a pixel.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from skimage.measure import find_contours
from torch import Tensor
from torchvision.ops import roi_align


def crop_objects(layers: Tensor, layer: Tensor, objects: Tensor, boxes: Tensor, resolution: int) -> Tensor:
    """How much of every cell of every box an object covers.

    Args:
        layers: L×H×W integers; object k is where ``layers[layer[k]] == k + 1``.
        layer: Of every object.
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
    masks = torch.zeros(len(phi), *size, dtype=torch.bool, device=phi.device)
    for mask, plane, box in zip(masks, phi.float(), boxes.tolist(), strict=True):
        left, top, right, bottom = box
        # Pixels of which the centre is in the box; of a box too small for one, the pixel that it is in.
        x0, x1 = _span(left, right, size[1])
        y0, y1 = _span(top, bottom, size[0])
        x = _grid(x0, x1, left, right, plane)
        y = _grid(y0, y1, top, bottom, plane)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        inside = F.grid_sample(plane[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
        mask[y0:y1, x0:x1] = inside > 0
    return masks


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    first, last = round(low), round(high)
    if last <= first:
        first = math.floor((low + high) / 2)
    first = min(max(first, 0), size - 1)
    return first, min(max(last, first + 1), size)


def _grid(first: int, last: int, low: float, high: float, like: Tensor) -> Tensor:
    """Where pixel centres lie in the box, from -1 to 1."""
    centre = torch.arange(first, last, device=like.device, dtype=like.dtype) + 0.5
    return (centre - low) * (2 / max(high - low, 1e-6)) - 1


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
