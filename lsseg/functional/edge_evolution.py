"""Runs DELSE's edge-based level-set evolution (Wang 2019, as extended by Homayounfar 2020, section 5, table 3).

Legend: M objects, N iterations, H×W pixels. φ > 0 inside.

    ∂φ/∂t = -V·∇φ + m κ |∇φ|,    m ≥ 0

V points towards the nearest contour of the object, and the contour φ = 0 moves along V.
"""

import torch
from torch import Tensor

from lsseg.functional.curvature import curvature
from lsseg.functional.distance import signed_distance


def edge_evolve(
    phi: Tensor,
    velocity: Tensor,
    modulation: Tensor,
    motion: Tensor,
    smoothing: Tensor,
    dt: Tensor,
    *,
    eta: float = 0.03,
) -> Tensor:
    """Carry level-set functions along a velocity field and smooth them, in N explicit steps.

    The motion uses upwind differences, and the curvature term uses central differences. The steps are stable for
    dt · motion · (|V_x| + |V_y|) ≤ 1.

    Args:
        phi: M×H×W, positive inside.
        velocity: M×2×H×W, V_x and V_y in pixels per unit time.
        modulation: M×H×W, m ≥ 0, weight of the curvature at each pixel.
        motion: M, weight of the motion.
        smoothing: M, weight of the curvature of each object.
        dt: M×N, length of each step.
        eta: η > 0, see :func:`lsseg.functional.curvature`.

    Returns:
        M×H×W, float32 (float64 for float64 input), differentiable with respect to all tensors.

    >>> phi = torch.tensor([[[-1.5, -0.5, 0.5, 1.5]]])
    >>> right, one = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4), torch.ones(1)
    >>> edge_evolve(phi, right, torch.zeros(1, 1, 4), one, one, torch.ones(1, 1))  # a pixel to the right
    tensor([[[-1.5000, -1.5000, -0.5000,  0.5000]]])
    """
    dtype = torch.promote_types(phi.dtype, torch.float32)
    phi, velocity, modulation = phi.to(dtype), velocity.to(dtype), modulation.to(dtype)
    vx, vy = velocity.unbind(1)
    for step in dt.to(dtype).unbind(1):
        along = _upwind(phi, vx, 2) + _upwind(phi, vy, 1)
        gx, gy = _central(phi, 2), _central(phi, 1)
        slope = (gx.square() + gy.square() + 1e-12).sqrt()
        bend = smoothing[:, None, None] * modulation * curvature(phi, eta) * slope
        phi = phi + step[:, None, None] * (bend - motion[:, None, None] * along)
    return phi


def _upwind(phi: Tensor, speed: Tensor, dim: int) -> Tensor:
    """Return v ∂φ, with the difference on the side that the motion comes from, and 0 across the image's edge."""
    difference = phi.diff(dim=dim)
    nothing = torch.zeros_like(phi.narrow(dim, 0, 1))
    behind, ahead = torch.cat([nothing, difference], dim), torch.cat([difference, nothing], dim)
    return speed.clamp_min(0) * behind + speed.clamp_max(0) * ahead


def _central(phi: Tensor, dim: int) -> Tensor:
    difference = phi.diff(dim=dim)
    nothing = torch.zeros_like(phi.narrow(dim, 0, 1))
    return (torch.cat([nothing, difference], dim) + torch.cat([difference, nothing], dim)) / 2


def _slope(values: Tensor, dim: int) -> Tensor:
    """Return central differences. At the edge they are one-sided, because halved ones would turn the gradient."""
    slope = _central(values, dim)
    for edge in (0, -1):
        slope.select(dim, edge).mul_(2)
    return slope


def towards_contour(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors towards the nearest contour of a mask, and the pixels that have one.

    Args:
        mask: M×H×W bool.

    Returns:
        M×2×H×W float32 (x, y), and the pixels that have a direction, M×H×W bool. A pixel has none (and the vector 0)
        where two parts of the contour are equally near, or where the mask has no contour.
    """
    distance = signed_distance(mask).abs()
    gradient = torch.stack([_slope(distance, 2), _slope(distance, 1)], 1)
    norm = gradient.square().sum(1).sqrt()
    contour = mask.flatten(1).any(1) & ~mask.flatten(1).all(1)
    valid = (norm > 1e-3) & contour[:, None, None]
    return torch.where(valid[:, None], -gradient / norm.clamp_min(1e-3)[:, None], 0), valid
