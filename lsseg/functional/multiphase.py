"""Evolves multiphase level sets by competition and curvature (Zhang 2019, eq. 7-10), in O(C) operations per pixel.

Legend: B images, C classes, H×W pixels. φ > 0 inside, which flips the paper's signs.

    ∂φ_i/∂t = (F_i + ε κ_i) |∇φ_i|
    F_i = log f_i - max(log ρ, max over j ≠ i of log f_j),   clipped to ± the speed limit
    κ_i = div(A ∇φ_i/|∇φ_i|),   A = Σ_j ∇φ_j ∇φ_jᵀ / (Σ_j |∇φ_j|² + η²), a 2×2 matrix for each pixel

A takes three planes for every C, so nothing grows as C². A time step is an opaque custom operator. Its analytic
backward pass computes planes again instead of keeping them. On a CPU it takes as many planes at a time as fit into the
cache. On a GPU it uses Triton's kernels (:mod:`lsseg.functional.kernels.multiphase`). Elsewhere it takes all at once.
"""

import math
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.blocks import refuse_forward_mode
from lsseg.functional.kernels import Kernels, use_triton
from lsseg.functional.multiphase_step import multiphase_step
from lsseg.functional.partition import competition, largest_class, regions

Normalization = Literal["gradient", "classes"]

# A class without pixels is kept this far below the largest φ of each pixel. This is relative to |φ| where |φ| > 1.
MARGIN = 1e-4


def multiphase_evolve(
    phi: Tensor,
    log_likelihood: Tensor,
    epsilon: float = 1.0,
    rho: float = 0.5,
    dt: float = 0.5,
    steps: int = 1,
    *,
    speed_limit: float = 1.0,
    eta: float = 0.005,
    normalize: Normalization = "gradient",
    present: Tensor | None = None,
    kernels: Kernels = "auto",
) -> Tensor:
    """Evolve the level-set functions of all classes at once (Zhang 2019, eq. 7-10).

    The competition F uses upwind (Godunov) differences, and the curvature uses central differences. Both repeat the
    image's edge. A class that is nowhere the largest has no contour. It neither moves nor smooths other classes, and it
    is lowered wherever the others fall below it. So a class that is absent stays absent.

    Args:
        phi: B×C×H×W, positive inside. The region of a class is where its φ is the largest. Contours move in pixels per
            unit time for any scale of φ, if its gradients are well above η.
        log_likelihood: B×C×H×W, log f; -∞ is taken as -10 000.
        epsilon: ε ≥ 0, weight of the curvature; dt · ε must not exceed 1, the bound of its stability.
        rho: ρ in (0, 1]. A class whose likelihood is below ρ retreats even without a rival.
        dt: Δt in (0, ½]; ½ is the bound of stability for a speed limit of 1.
        steps: Number of time steps; 0 returns φ.
        speed_limit: Bound on |F|, in pixels per unit time; dt · speed_limit must not exceed ½.
        eta: η > 0, in units of φ per pixel. Gradients much smaller than η have no direction.
        normalize: Normalisation of A. ``gradient`` is as above, so that every contour counts the same. ``classes`` is
            1/C · Σ n_j n_jᵀ as the paper prints it, which hardly smooths a contour between two of many classes.
        present: B×C bool, which classes are the largest somewhere. None computes it from φ.
        kernels: ``auto`` uses Triton on a GPU where it is installed. ``triton`` or ``torch`` forces one or the other.

    Returns:
        B×C×H×W, float32 (float64 for float64 input). Differentiable once, with respect to φ and log f.

    Raises:
        ValueError: If shapes do not fit or an option is out of range.

    >>> log_f = torch.tensor([0.9, 0.1]).log().view(1, 2, 1, 1).expand(1, 2, 1, 6)
    >>> phi = torch.tensor([2.5, 1.5, 0.5, -0.5, -1.5, -2.5]).view(1, 1, 1, 6)
    >>> moved = multiphase_evolve(torch.cat([phi, -phi], 1), log_f, dt=0.5, steps=4)
    >>> (moved[0, 0, 0] > moved[0, 1, 0]).tolist()
    [True, True, True, True, True, False]
    """
    _check(phi, log_likelihood, epsilon, rho, dt, steps, speed_limit, eta, normalize)
    refuse_forward_mode(phi, log_likelihood)
    dtype = torch.promote_types(torch.promote_types(phi.dtype, log_likelihood.dtype), torch.float32)
    phi, log_f = phi.to(dtype), log_likelihood.to(dtype)
    if steps == 0:
        return phi
    if present is None:
        present = regions(largest_class(phi.detach()), phi.shape[1]).flatten(2).any(2)
    speed = competition(log_f, rho, speed_limit, kernels)
    triton = use_triton(kernels, phi)
    for _ in range(steps):
        phi, _ = multiphase_step(phi, speed, present, epsilon, dt, eta, normalize == "classes", triton)
    return _hold_under(phi, present)


def _check(
    phi: Tensor,
    log_likelihood: Tensor,
    epsilon: float,
    rho: float,
    dt: float,
    steps: int,
    speed_limit: float,
    eta: float,
    normalize: str,
) -> None:
    if phi.ndim != 4 or phi.shape != log_likelihood.shape or 0 in phi.shape:
        shapes = f"{tuple(phi.shape)} and {tuple(log_likelihood.shape)}"
        raise ValueError(f"expected phi and log_likelihood of one shape B×C×H×W, not {shapes}")
    if not phi.is_floating_point() or not log_likelihood.is_floating_point():
        raise ValueError(f"expected floating phi and log_likelihood, not {phi.dtype} and {log_likelihood.dtype}")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, not {epsilon}")
    if not 0 < rho <= 1:
        raise ValueError(f"rho must lie in (0, 1], not {rho}")
    if not 0 < dt <= 0.5 or not 0 < dt * speed_limit <= 0.5:
        raise ValueError(f"dt and dt · speed_limit must lie in (0, ½], not {dt} and {dt * speed_limit}")
    if not dt * epsilon <= 1:
        raise ValueError(
            f"dt · epsilon must be at most 1, not {dt * epsilon}, because the curvature step is unstable above 1"
        )
    if not steps >= 0:
        raise ValueError(f"steps must not be negative, not {steps}")
    if not eta > 0:
        raise ValueError(f"eta must be positive, not {eta}")
    if normalize not in ("gradient", "classes"):
        raise ValueError(f"normalize must be 'gradient' or 'classes', not {normalize!r}")


def _hold_under(phi: Tensor, present: Tensor) -> Tensor:
    """Lower the classes that were absent to just below the largest φ of each pixel, where they exceed it."""
    # Nearly always no absent class has risen, and a CPU finds this out quickly. Compiled code cannot branch on a value.
    if blocks.in_cache(phi.device) and not torch.compiler.is_compiling() and not _any_risen(phi.detach(), present):
        return phi
    mask = present[:, :, None, None]
    best = phi.masked_fill(~mask, -math.inf).amax(1, keepdim=True)
    return torch.where(mask, phi, torch.minimum(phi, _below(best)))


def _below(best: Tensor) -> Tensor:
    return best - MARGIN * best.detach().abs().clamp_min(1)


def _any_risen(phi: Tensor, present: Tensor) -> bool:
    for planes, here in zip(phi, present.tolist(), strict=True):
        absent = [plane for plane, known in zip(planes, here, strict=True) if not known]
        if absent:
            best = reduce(torch.maximum, [plane for plane, known in zip(planes, here, strict=True) if known])
            if bool((reduce(torch.maximum, absent) > _below(best)).any()):
                return True
    return False
