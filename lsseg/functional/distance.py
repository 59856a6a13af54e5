"""Computes exact signed Euclidean distances of masks (Zhang 2019, algorithm 1; Homayounfar 2020, section 3).

Legend: H×W pixels, M masks. Distances are in pixels and positive inside. Zero lies on the edge between two pixels.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.heaviside import arctan_step
from lsseg.functional.kernels import Kernels, use_triton

# Up to this distance in pixels, float32 tells a square from the next whole number (2¹² squared has 24 bits).
EXACT_BELOW = 1200
# Up to this distance in pixels, the sum of two squared distances fits into 32 bits.
FARTHEST = 30000


def signed_distance(mask: Tensor, truncation: float | None = None, kernels: Kernels = "auto") -> Tensor:
    """Return the signed distance to the contour of a mask: d_in - ½ inside, ½ - d_out outside.

    d_in and d_out are the distances from a pixel's centre to the centre of the nearest pixel on the other side, so that
    pixels beside the contour have ±½. A mask without a contour (empty or full) has ±truncation everywhere, or
    ±(H + W) without a truncation. The result has no gradient, because the mask has none.

    On a CPU OpenCV's exact transform works mask by mask, on the part of the image that a truncated distance can reach.
    On other devices the data stay on the device. The distance is a separable minimum over the window of the truncation,
    or over the whole image without one (H + W steps). On a GPU two Triton kernels compute it.

    Args:
        mask: …×H×W bool.
        truncation: τ > 0 in pixels; distances are clipped to ±τ. None does not clip.
        kernels: ``auto`` uses Triton on a GPU where it is installed. ``triton`` or ``torch`` forces one or the other.

    Returns:
        …×H×W float32.

    Raises:
        ValueError: If ``mask`` is not bool, has fewer than two dimensions or no pixel, or ``truncation`` is not
            positive and finite.

    >>> signed_distance(torch.tensor([[False, True, True, True]]))
    tensor([[-0.5000,  0.5000,  1.5000,  2.5000]])
    """
    if mask.dtype != torch.bool or mask.dim() < 2 or 0 in mask.shape[-2:]:
        raise ValueError(f"mask must be bool, …×H×W, not {mask.dtype} {tuple(mask.shape)}")
    if truncation is not None and not 0 < truncation < math.inf:
        raise ValueError(f"truncation must be positive and finite (None does not clip), not {truncation}")
    if mask.numel() == 0:
        return torch.zeros(mask.shape, device=mask.device)
    limit = float(truncation) if truncation is not None else float(sum(mask.shape[-2:]))
    planes = mask.detach().reshape(-1, *mask.shape[-2:])
    if use_triton(kernels, mask) and limit < FARTHEST:
        return _by_triton(planes, limit).view(mask.shape)
    distance = _by_library(planes, limit) if blocks.in_cache(mask.device) else windowed_signed_distance(planes, limit)
    return distance.view(mask.shape)


def tsdf(mask: Tensor, reach: float) -> Tensor:
    """Return the truncated signed distance function (TSDF) of a mask in units of ``reach`` (Homayounfar 2020).

    Args:
        mask: …×H×W bool.
        reach: τ > 0 in pixels.

    Returns:
        …×H×W float32 in [-1, 1].

    >>> tsdf(torch.tensor([[False, True, True, True]]), 2.0)
    tensor([[-0.2500,  0.2500,  0.7500,  1.0000]])
    """
    return signed_distance(mask, reach).div_(reach)


def tsdf_loss(phi: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None = None, epsilon: float = 0.1) -> Tensor:
    """Return mean |φ - φ_GT| + mean BCE(H_ε(φ), M_GT) over the valid pixels (Homayounfar 2020, section 4.2).

    H is the arctan step function. Both H(φ) and 1 - H(φ) = H(-φ) keep their tails in float32, so the logarithm is
    finite wherever φ is finite.

    Args:
        phi: Any shape.
        target: φ_GT, normalised like φ (:func:`tsdf`), of the shape of ``phi``.
        mask: M_GT, bool, of the shape of ``phi``.
        valid: Bool, broadcast to ``phi``: pixels that count. None counts all pixels.
        epsilon: ε > 0, width of the step in units of φ; 0.1 in the paper.

    Returns:
        A scalar, which is 0 (with zero gradient) if no pixel is valid.

    >>> phi = torch.tensor([[-0.5, 0.5]])
    >>> tsdf_loss(phi, phi, phi > 0)  # -log H_0.1(½)
    tensor(0.0649)
    """
    exact = blocks.wide(phi)
    distance = (exact - target).abs()
    signed = torch.where(mask, exact, -exact)
    entropy = -arctan_step(signed, signed.new_full((), epsilon)).log()
    loss = distance + entropy
    if valid is None:
        return loss.sum() / max(1, loss.numel())
    return torch.where(valid, loss, 0).sum() / valid.expand_as(loss).sum().clamp_min(1)


@torch.library.custom_op("lsseg::signed_distance", mutates_args=())
def _by_library(mask: Tensor, limit: float) -> Tensor:
    """Measure M×H×W masks on the CPU by OpenCV, each side of each mask on no more of the image than τ requires."""
    planes = mask.numpy().view(np.uint8)
    distance = np.empty(planes.shape, np.float32)

    def measure(numbers: Sequence[int]) -> None:
        for number in numbers:
            _measure(planes[number], distance[number], limit)

    blocks.in_threads(measure, range(len(planes)), mask.device)
    return torch.from_numpy(distance)


def _measure(plane: npt.NDArray[np.uint8], out: npt.NDArray[np.float32], limit: float) -> None:
    """Write the signed distances of one mask into ``out``."""
    filled = np.count_nonzero(plane)
    if filled in (0, plane.size):
        out.fill(limit if filled else -limit)
        return
    out.fill(-limit)
    part = _reach(plane, math.ceil(limit + 0.5))
    own = np.ascontiguousarray(plane[part])
    signed = _to_nearest_zero(own, limit)
    signed -= _to_nearest_zero(1 - own, limit)
    signed += 0.5
    signed -= own
    np.clip(signed, -limit, limit, out=out[part])


@_by_library.register_fake
def _(mask: Tensor, limit: float) -> Tensor:
    return torch.empty(mask.shape, device=mask.device)


@torch.library.custom_op("lsseg::signed_distance_triton", mutates_args=())
def _by_triton(mask: Tensor, limit: float) -> Tensor:
    from lsseg.functional.kernels import partition as kernels

    return kernels.signed_distance(mask, limit, math.ceil(limit + 0.5))


@_by_triton.register_fake
def _(mask: Tensor, limit: float) -> Tensor:
    return torch.empty(mask.shape, device=mask.device)


def _to_nearest_zero(plane: npt.NDArray[np.uint8], limit: float) -> npt.NDArray[np.float32]:
    distance: npt.NDArray[np.float32] = cv2.distanceTransform(plane, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    if min(limit, sum(plane.shape)) > EXACT_BELOW:
        return distance
    # The last bit of OpenCV's result depends on where in memory it lies. The true square is a whole number, so rounding
    # makes it exact. Squares too large for float32 may stay wrong, but they are beyond the limit and are clipped.
    return np.sqrt(np.rint(np.square(distance, out=distance), out=distance), out=distance)


def _reach(plane: npt.NDArray[np.uint8], margin: int) -> tuple[slice, slice]:
    """Return the bounding box of a mask's pixels, grown by a margin. Beyond it every distance exceeds the margin."""
    slices = []
    for axis in (1, 0):
        where = np.flatnonzero(plane.any(axis=axis))
        slices.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + margin + 1))
    return slices[0], slices[1]


def windowed_signed_distance(mask: Tensor, limit: float) -> Tensor:
    """Compute :func:`signed_distance` on any device by whole-tensor operations (M×H×W bool to M×H×W float32)."""
    return torch.cat([_windowed(mask[part], limit) for part in blocks.grouped(len(mask), mask[0].numel(), mask.device)])


def _windowed(mask: Tensor, limit: float) -> Tensor:
    reach = math.ceil(limit + 0.5)
    inside, outside = (_squared_distance(side, reach).float().sqrt_() for side in (~mask, mask))
    # A side that is nowhere in the window is farther away than the limit.
    return torch.where(mask, inside - 0.5, 0.5 - outside).clamp_(-limit, limit)


def _squared_distance(mask: Tensor, reach: int) -> Tensor:
    """Return the squared distance to the nearest pixel of a mask, exact up to ``reach`` and above reach² beyond it.

    The minimum of dy² + dx² is a minimum over columns of a minimum over rows. It is exact, because it is computed in
    integers.
    """
    far = (reach + 1) ** 2
    kind = torch.int16 if 3 * far < 2**15 else torch.int32
    squared = torch.full(mask.shape, far, dtype=kind, device=mask.device).masked_fill_(mask, 0)
    for dim in (1, 2):
        size = squared.shape[dim]
        nearest = squared.clone()
        for step in range(1, min(reach, size - 1) + 1):
            stepped = squared + step * step
            head, tail = slice_along(dim, 0, size - step), slice_along(dim, step, size)
            torch.minimum(nearest[head], stepped[tail], out=nearest[head])
            torch.minimum(nearest[tail], stepped[head], out=nearest[tail])
        squared = nearest
    return squared


def slice_along(dim: int, start: int, stop: int) -> tuple[slice, ...]:
    """Return the index of the places start..stop-1 along one dimension."""
    return (slice(None),) * dim + (slice(start, stop),)
