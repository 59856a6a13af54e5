"""Evolution of multiphase level sets by competition and curvature (Zhang 2019, eq. 7-10), O(C) per pixel.

Legend: B images, C classes, H×W pixels; b images and n classes of a block. φ > 0 inside (the paper's signs flipped).

    ∂φ_i/∂t = (F_i + ε κ_i) |∇φ_i|
    F_i = log f_i - max(log ρ, max over j ≠ i of log f_j),   clipped to ± the speed limit
    κ_i = div(A ∇φ_i/|∇φ_i|),   A = Σ_j ∇φ_j ∇φ_jᵀ / (Σ_j |∇φ_j|² + η²), a 2×2 matrix for each pixel

A takes three planes whatever C is: nothing grows as C². A time step is an opaque custom operator with an analytic
backward that recomputes instead of keeping planes, and works through planes that fit into a CPU's cache; on a GPU by
Triton's kernels (:mod:`lsseg.functional.kernels.multiphase`), and where there are none everything at once.
"""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.competition import competition, equal, refuse_second_derivative
from lsseg.functional.curvature import (
    add_difference_adjoint,
    difference_adjoint,
    spread,
    spread_adjoint,
)
from lsseg.functional.kernels import Kernels, use_triton
from lsseg.functional.once import refuse_forward_mode
from lsseg.functional.partition import largest_class, regions

Normalization = Literal["gradient", "classes"]

# How far a class without a pixel is kept below the winner of each pixel, and relative to it where |φ| > 1.
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

    The competition F takes upwind (Godunov) differences, the curvature central ones, both with the image's edge
    repeated. A class that is nowhere the largest has no contour: it neither moves nor smooths others, and where the
    others fall below it, it is held under them; so a class that is absent stays absent.

    Args:
        phi: B×C×H×W, positive inside; contours move in pixels per unit time on any scale on which gradients are well
            above η. The region of a class is where its φ is the largest.
        log_likelihood: B×C×H×W, log f; -∞ is taken as -10 000.
        epsilon: ε ≥ 0, weight of the curvature; dt · ε may not exceed 1, the bound of its stability.
        rho: ρ in (0, 1]: a class whose likelihood is below it retreats even without a rival.
        dt: Δt in (0, ½], the bound of stability for a speed limit of 1.
        steps: Number of time steps; 0 returns φ.
        speed_limit: Bound on the size of F, in pixels per unit time; dt · speed_limit may not exceed ½.
        eta: η > 0, in units of φ per pixel: gradients much smaller have no direction.
        normalize: Normalisation of A: ``gradient`` as above, so that every contour counts the same; ``classes`` as the
            paper prints it, 1/C · Σ n_j n_jᵀ, which hardly smooths a contour between two of many classes.
        present: B×C bool, which classes are the largest somewhere, where that is known already.
        kernels: ``auto``: Triton's on a GPU, where Triton is there; ``triton`` or ``torch`` force one or the other.

    Returns:
        B×C×H×W, float32 (float64 for float64 input). Differentiable once, by φ and the log-likelihood.

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
        phi, _ = _step(phi, speed, present, epsilon, dt, eta, normalize == "classes", triton)
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
            f"dt · epsilon must not exceed 1, beyond which the curvature's step is unstable: {dt * epsilon}"
        )
    if not steps >= 0:
        raise ValueError(f"steps must not be negative, not {steps}")
    if not eta > 0:
        raise ValueError(f"eta must be positive, not {eta}")
    if normalize not in ("gradient", "classes"):
        raise ValueError(f"normalize must be 'gradient' or 'classes', not {normalize!r}")


def _hold_under(phi: Tensor, present: Tensor) -> Tensor:
    """Lower the classes that were absent to just below the winner of each pixel, where they are not."""
    # That none has risen is nearly always so, and quickly seen; what is compiled cannot choose by a number.
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


# --- one time step ---------------------------------------------------------------------------------------------------
#
# Differences between pixels along each axis serve both schemes. Upwind: where the front advances (F > 0), by how
# much the higher neighbour exceeds the pixel; where it retreats, by how much the lower one falls short of it. Central:
# the sum of the two differences at a pixel, the edge repeated, which is *twice* the derivative; what is made of it
# takes that into account (n and A do not change if η is doubled, too), and saves a pass over every plane.


def _upwind(d: Tensor, sign: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The upwind difference (≥ 0), and the signed difference ahead of each pixel."""
    size = d.shape[dim]
    ahead = torch.empty_like(sign)
    torch.mul(d, sign.narrow(dim, 0, size), out=ahead.narrow(dim, 0, size))
    ahead.narrow(dim, size, 1).zero_()
    taken = ahead.clamp_min(0)
    there = taken.narrow(dim, 1, size)
    torch.maximum(there, (d * sign.narrow(dim, 1, size)).neg_(), out=there)
    return taken, ahead


def _upwind_adjoint(g: Tensor, taken: Tensor, ahead: Tensor, sign: Tensor, dim: int) -> Tensor:
    """Gradient by the differences: each pixel's goes to the one that was taken; ``g`` is 0 where none was."""
    size = g.shape[dim] - 1
    signed = g * sign
    by_ahead = equal(ahead, taken).mul_(signed)
    signed -= by_ahead
    return by_ahead.narrow(dim, 0, size) - signed.narrow(dim, 1, size)


class _Planes:
    """A block of planes with its differences; forward and backward share it.

    Args:
        phi: b×n×H×W.
        eta: η.
    """

    def __init__(self, phi: Tensor, eta: float) -> None:
        self.dx, self.dy = phi.diff(dim=-1), phi.diff(dim=-2)
        self.gx, self.gy = spread(self.dx, -1), spread(self.dy, -2)
        self.eta = eta

    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Twice |∇φ| (with η) and the unit normal."""
        norm = (self.gx * self.gx).addcmul_(self.gy, self.gy).add_(4 * self.eta**2).sqrt_()
        return norm, self.gx / norm, self.gy / norm


def _blocks(phi: Tensor, present: Tensor) -> Iterator[tuple[Any, Tensor | None, slice]]:
    """Index of a block of planes in B×C×H×W, the mask of those that evolve (b×n×1×1; None for all), and its images.

    On a CPU classes that are absent are not touched at all; elsewhere asking for them would wait for the device.
    """
    if not blocks.in_cache(phi.device):
        yield slice(None), present[:, :, None, None], slice(None)
        return
    for image, here in enumerate(present.tolist()):
        classes = [label for label, known in enumerate(here) if known]
        for part in blocks.grouped(len(classes), phi[0, 0].numel(), phi.device):
            chosen = classes[part]
            together = len(chosen) == chosen[-1] + 1 - chosen[0]
            index = slice(chosen[0], chosen[-1] + 1) if together else chosen
            yield (slice(image, image + 1), index), None, slice(image, image + 1)


def _sums(phi: Tensor, present: Tensor, eta: float, by_class: bool) -> Tensor:
    """The sums in A, B×3×H×W (xx, xy, yy): of (2∇φ) (2∇φ)ᵀ, or of n nᵀ."""
    sums = phi.new_zeros(len(phi), 3, *phi.shape[2:])
    for place, mask, image in _blocks(phi, present):
        planes = _Planes(phi[place], eta)
        vx, vy = planes.normals()[1:] if by_class else (planes.gx, planes.gy)
        if mask is not None:
            vx, vy = vx * mask, vy * mask
        for plane, (one, two) in zip(sums[image].unbind(1), ((vx, vx), (vx, vy), (vy, vy)), strict=True):
            plane.add_(_total(one * two))
    return sums


def _total(planes: Tensor) -> Tensor:
    """Sum over the classes of a block; that of one class costs nothing."""
    return planes.sum(1) if planes.shape[1] > 1 else planes[:, 0]


def _scale(sums: Tensor, classes: int, eta: float, by_class: bool) -> Tensor | int:
    """What the sums are divided by to make A."""
    return classes if by_class else sums[:, 0:1] + sums[:, 2:3] + 4 * eta**2


def _flow(nx: Tensor, ny: Tensor, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A n."""
    a, b, c = tensor.unsqueeze(2).unbind(1)
    return (a * nx).addcmul_(b, ny), (b * nx).addcmul_(c, ny)


def _divergence(qx: Tensor, qy: Tensor) -> Tensor:
    """Twice the divergence."""
    return spread(qx.diff(dim=-1), -1).add_(spread(qy.diff(dim=-2), -2))


@torch.library.custom_op("lsseg::multiphase_step", mutates_args=())
def _step(
    phi: Tensor, speed: Tensor, present: Tensor, epsilon: float, dt: float, eta: float, by_class: bool, triton: bool
) -> tuple[Tensor, Tensor]:
    """Returns φ after the step and the sums in A (empty where ε is 0)."""
    if triton:
        from lsseg.functional.kernels import multiphase as kernels

        return kernels.step(phi, speed, present, epsilon, dt, eta, by_class)
    out = phi.clone(memory_format=torch.contiguous_format)
    sums = _sums(phi, present, eta, by_class) if epsilon else phi.new_empty(0)
    tensor = sums / _scale(sums, phi.shape[1], eta, by_class) if epsilon else None
    for place, mask, image in _blocks(phi, present):
        planes, force = _Planes(phi[place], eta), speed[place]
        sign = force.sign()
        (ux, _), (uy, _) = _upwind(planes.dx, sign, -1), _upwind(planes.dy, sign, -2)
        change = ux.mul_(ux).addcmul_(uy, uy).sqrt_().mul_(force)
        if tensor is not None:
            norm, nx, ny = planes.normals()
            change.addcmul_(_divergence(*_flow(nx, ny, tensor[image])), norm, value=epsilon / 4)
        out[place] += change.mul_(dt) if mask is None else change.mul_(dt).mul_(mask)
    return out, sums


@_step.register_fake
def _(
    phi: Tensor, speed: Tensor, present: Tensor, epsilon: float, dt: float, eta: float, by_class: bool, triton: bool
) -> tuple[Tensor, Tensor]:
    return phi.new_empty(phi.shape), phi.new_empty((len(phi), 3, *phi.shape[2:]) if epsilon else (0,))


@torch.library.custom_op("lsseg::multiphase_step_backward", mutates_args=())
def _step_backward(
    by_out: Tensor,
    phi: Tensor,
    speed: Tensor,
    present: Tensor,
    sums: Tensor,
    epsilon: float,
    dt: float,
    eta: float,
    by_class: bool,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    if triton:
        from lsseg.functional.kernels import multiphase as kernels

        return kernels.step_backward(by_out, phi, speed, present, sums, epsilon, dt, eta, by_class)
    by_phi = by_out.clone(memory_format=torch.contiguous_format)
    by_speed = torch.zeros(phi.shape, dtype=phi.dtype, device=phi.device)
    scale = _scale(sums, phi.shape[1], eta, by_class) if epsilon else 1
    tensor, by_tensor = (sums / scale, torch.zeros_like(sums)) if epsilon else (None, sums)
    for place, mask, image in _blocks(phi, present):
        planes = _Planes(phi[place], eta)
        g = by_out[place] * dt if mask is None else by_out[place] * dt * mask
        gradient, by_force = _upwind_backward(g, planes, speed[place])
        by_speed[place] = by_force
        if tensor is not None:
            _curvature_backward(g.mul_(epsilon / 4), planes, tensor[image], by_tensor[image], gradient)
        by_phi[place] += gradient
    if tensor is not None:
        # A = sums / scale, and unless it is a constant the scale is the trace of the sums (and 4η²).
        by_sums = by_tensor / scale
        if not by_class:
            by_sums[:, 0::2] -= (by_sums * tensor).sum(1, keepdim=True)
        _sums_backward(by_sums, phi, present, eta, by_class, by_phi)
    return by_phi, by_speed


def _upwind_backward(g: Tensor, planes: _Planes, force: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by φ and by F of F |∇φ|."""
    sign = force.sign()
    ux, ahead_x = _upwind(planes.dx, sign, -1)
    uy, ahead_y = _upwind(planes.dy, sign, -2)
    norm = (ux * ux).addcmul_(uy, uy).sqrt_()
    # At a norm of 0 both components are 0, and so is the gradient that is chosen there (the bound is large enough for
    # the quotient to stay finite whatever a gradient scaler makes of g).
    share = (g * force).div_(norm.clamp_min(1e-12))
    gradient = difference_adjoint(_upwind_adjoint(share * ux, ux, ahead_x, sign, -1), -1)
    add_difference_adjoint(gradient, _upwind_adjoint(share.mul_(uy), uy, ahead_y, sign, -2), -2)
    return gradient, norm.mul_(g)


def _curvature_backward(g: Tensor, planes: _Planes, tensor: Tensor, by_tensor: Tensor, gradient: Tensor) -> None:
    """Add the gradients by φ (A held fixed) and by A of (2 div A n) (2 |∇φ|)."""
    norm, nx, ny = planes.normals()
    divergence = _divergence(*_flow(nx, ny, tensor))
    by_divergence = g * norm
    by_qx = difference_adjoint(spread_adjoint(by_divergence, -1), -1)
    by_qy = difference_adjoint(spread_adjoint(by_divergence, -2), -2)
    by_xx, by_xy, by_yy = by_tensor.unbind(1)
    by_xx += _total(by_qx * nx)
    by_xy += _total((by_qx * ny).addcmul_(by_qy, nx))
    by_yy += _total(by_qy * ny)
    by_nx, by_ny = _flow(by_qx, by_qy, tensor)  # A is symmetric
    _add_through_normal(gradient, by_nx, by_ny, norm, nx, ny, divergence.mul_(g))


def _add_through_normal(
    gradient: Tensor, by_nx: Tensor, by_ny: Tensor, norm: Tensor, nx: Tensor, ny: Tensor, by_norm: Tensor | float
) -> None:
    """Add the gradient by φ of a function of the unit normal and of twice the norm of ∇φ."""
    by_nx, by_ny = by_nx.div_(norm), by_ny.div_(norm)
    along = (nx * by_nx).addcmul_(ny, by_ny).neg_().add_(by_norm)
    add_difference_adjoint(gradient, spread_adjoint(by_nx.addcmul_(nx, along), -1), -1)
    add_difference_adjoint(gradient, spread_adjoint(by_ny.addcmul_(ny, along), -2), -2)


def _sums_backward(by_sums: Tensor, phi: Tensor, present: Tensor, eta: float, by_class: bool, by_phi: Tensor) -> None:
    """Add to ``by_phi`` what comes through the sums of A."""
    by_sums[:, 0::2] *= 2
    for place, mask, image in _blocks(phi, present):
        planes = _Planes(phi[place], eta)
        norm, vx, vy = planes.normals() if by_class else (planes.gx, planes.gx, planes.gy)
        by_x, by_y = _flow(vx, vy, by_sums[image])
        if mask is not None:
            by_x, by_y = by_x * mask, by_y * mask
        if by_class:
            gradient = torch.zeros_like(vx)
            _add_through_normal(gradient, by_x, by_y, norm, vx, vy, 0.0)
        else:
            gradient = difference_adjoint(spread_adjoint(by_x, -1), -1)
            add_difference_adjoint(gradient, spread_adjoint(by_y, -2), -2)
        by_phi[place] += gradient


@_step_backward.register_fake
def _(
    by_out: Tensor,
    phi: Tensor,
    speed: Tensor,
    present: Tensor,
    sums: Tensor,
    epsilon: float,
    dt: float,
    eta: float,
    by_class: bool,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    return phi.new_empty(phi.shape), phi.new_empty(phi.shape)


def _keep_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    phi, speed, present, *ctx.options = inputs
    ctx.save_for_backward(phi, speed, present, output[1])


def _differentiate_step(ctx: Any, by_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    by_phi, by_speed = _step_backward(by_out, *ctx.saved_tensors, *ctx.options)
    return by_phi, by_speed, *[None] * 6


_step.register_autograd(_differentiate_step, setup_context=_keep_step)
_step_backward.register_autograd(refuse_second_derivative)
