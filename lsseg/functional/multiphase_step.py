"""Runs one time step of :mod:`lsseg.functional.multiphase` and its gradient as one operator.

Legend: B images, C classes, H×W pixels. A block has b images and n classes.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.curvature import (
    add_difference_adjoint,
    difference_adjoint,
    spread,
    spread_adjoint,
)
from lsseg.functional.partition import equal, refuse_second_derivative

# Both schemes use the differences between pixels along each axis. Where the front advances (F > 0), the upwind
# difference is how much the higher neighbour exceeds the pixel. Where it retreats, it is how much the lower neighbour
# falls short of the pixel. The central difference is the sum of both differences at a pixel, with the edge repeated.
# This is twice the derivative, which saves a pass over every plane. The functions below take the factor 2 into account.
# The factor does not change n and A, because η is doubled, too.


def _upwind(d: Tensor, sign: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the upwind difference (≥ 0), and the signed difference ahead of each pixel."""
    size = d.shape[dim]
    ahead = torch.empty_like(sign)
    torch.mul(d, sign.narrow(dim, 0, size), out=ahead.narrow(dim, 0, size))
    ahead.narrow(dim, size, 1).zero_()
    taken = ahead.clamp_min(0)
    there = taken.narrow(dim, 1, size)
    torch.maximum(there, (d * sign.narrow(dim, 1, size)).neg_(), out=there)
    return taken, ahead


def _upwind_adjoint(g: Tensor, taken: Tensor, ahead: Tensor, sign: Tensor, dim: int) -> Tensor:
    """Return the gradient by the differences. ``g`` goes to the difference that was taken, and is 0 if none was."""
    size = g.shape[dim] - 1
    signed = g * sign
    by_ahead = equal(ahead, taken).mul_(signed)
    signed -= by_ahead
    return by_ahead.narrow(dim, 0, size) - signed.narrow(dim, 1, size)


class _Planes:
    """Holds the differences of a block of planes, for the forward and the backward pass.

    Args:
        phi: b×n×H×W.
        eta: η.
    """

    def __init__(self, phi: Tensor, eta: float) -> None:
        self.dx, self.dy = phi.diff(dim=-1), phi.diff(dim=-2)
        self.gx, self.gy = spread(self.dx, -1), spread(self.dy, -2)
        self.eta = eta

    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return twice |∇φ| (with η) and the unit normal."""
        norm = (self.gx * self.gx).addcmul_(self.gy, self.gy).add_(4 * self.eta**2).sqrt_()
        return norm, self.gx / norm, self.gy / norm


def _blocks(phi: Tensor, present: Tensor) -> Iterator[tuple[Any, Tensor | None, slice]]:
    """Yield every block's index in B×C×H×W, its mask of classes that evolve (b×n×1×1; None for all), and its images.

    On a CPU the blocks leave out absent classes. On other devices, finding these classes would wait for the device.
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


def _each(work: Callable[[Any, Tensor | None, slice], None], phi: Tensor, present: Tensor) -> None:
    """Do some work on every block. On a CPU each thread has whole images, so no two threads add to the same sums."""

    def do(images: Any) -> None:
        for place, mask, image in itertools.chain.from_iterable(images):
            work(place, mask, image)

    by_image = itertools.groupby(_blocks(phi, present), key=lambda block: block[2].start)
    blocks.in_threads(do, [list(image) for _, image in by_image], phi.device)


def _sums(phi: Tensor, present: Tensor, eta: float, by_class: bool) -> Tensor:
    """Return the sums in A, B×3×H×W (xx, xy, yy), of (2∇φ) (2∇φ)ᵀ, or of n nᵀ if ``by_class``."""
    sums = phi.new_zeros(len(phi), 3, *phi.shape[2:])

    def add(place: Any, mask: Tensor | None, image: slice) -> None:
        planes = _Planes(phi[place], eta)
        vx, vy = planes.normals()[1:] if by_class else (planes.gx, planes.gy)
        if mask is not None:
            vx, vy = vx * mask, vy * mask
        for plane, (one, two) in zip(sums[image].unbind(1), ((vx, vx), (vx, vy), (vy, vy)), strict=True):
            plane.add_(_total(one * two))

    _each(add, phi, present)
    return sums


def _total(planes: Tensor) -> Tensor:
    """Return the sum over the classes of a block, which costs nothing for one class."""
    return planes.sum(1) if planes.shape[1] > 1 else planes[:, 0]


def _scale(sums: Tensor, classes: int, eta: float, by_class: bool) -> Tensor | int:
    """Return the number or planes by which the sums are divided to make A."""
    return classes if by_class else sums[:, 0:1] + sums[:, 2:3] + 4 * eta**2


def _flow(nx: Tensor, ny: Tensor, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return A n."""
    a, b, c = tensor.unsqueeze(2).unbind(1)
    return (a * nx).addcmul_(b, ny), (b * nx).addcmul_(c, ny)


def _divergence(qx: Tensor, qy: Tensor) -> Tensor:
    """Return twice the divergence."""
    return spread(qx.diff(dim=-1), -1).add_(spread(qy.diff(dim=-2), -2))


@torch.library.custom_op("lsseg::multiphase_step", mutates_args=())
def multiphase_step(
    phi: Tensor, speed: Tensor, present: Tensor, epsilon: float, dt: float, eta: float, by_class: bool, triton: bool
) -> tuple[Tensor, Tensor]:
    """Return φ after the step and the sums in A (empty if ε is 0)."""
    if triton:
        from lsseg.functional.kernels import multiphase as kernels

        return kernels.step(phi, speed, present, epsilon, dt, eta, by_class)
    out = phi.clone(memory_format=torch.contiguous_format)
    sums = _sums(phi, present, eta, by_class) if epsilon else phi.new_empty(0)
    tensor = sums / _scale(sums, phi.shape[1], eta, by_class) if epsilon else None

    def move(place: Any, mask: Tensor | None, image: slice) -> None:
        planes, force = _Planes(phi[place], eta), speed[place]
        sign = force.sign()
        (ux, _), (uy, _) = _upwind(planes.dx, sign, -1), _upwind(planes.dy, sign, -2)
        change = ux.mul_(ux).addcmul_(uy, uy).sqrt_().mul_(force)
        if tensor is not None:
            norm, nx, ny = planes.normals()
            change.addcmul_(_divergence(*_flow(nx, ny, tensor[image])), norm, value=epsilon / 4)
        out[place] += change.mul_(dt) if mask is None else change.mul_(dt).mul_(mask)

    _each(move, phi, present)
    return out, sums


@multiphase_step.register_fake
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

    def back(place: Any, mask: Tensor | None, image: slice) -> None:
        planes = _Planes(phi[place], eta)
        g = by_out[place] * dt if mask is None else by_out[place] * dt * mask
        gradient, by_force = _upwind_backward(g, planes, speed[place])
        by_speed[place] = by_force
        if tensor is not None:
            _curvature_backward(g.mul_(epsilon / 4), planes, tensor[image], by_tensor[image], gradient)
        by_phi[place] += gradient

    _each(back, phi, present)
    if tensor is not None:
        # A is sums / scale. Unless ``by_class`` makes the scale a constant, it is the trace of the sums plus 4η².
        by_sums = by_tensor / scale
        if not by_class:
            by_sums[:, 0::2] -= (by_sums * tensor).sum(1, keepdim=True)
        _sums_backward(by_sums, phi, present, eta, by_class, by_phi)
    return by_phi, by_speed


def _upwind_backward(g: Tensor, planes: _Planes, force: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of F |∇φ| by φ and by F."""
    sign = force.sign()
    ux, ahead_x = _upwind(planes.dx, sign, -1)
    uy, ahead_y = _upwind(planes.dy, sign, -2)
    norm = (ux * ux).addcmul_(uy, uy).sqrt_()
    # At a norm of 0 both components are 0, and the gradient is defined as 0 there. The bound is so large that the
    # quotient stays finite even when a gradient scaler enlarges g.
    share = (g * force).div_(norm.clamp_min(1e-12))
    gradient = difference_adjoint(_upwind_adjoint(share * ux, ux, ahead_x, sign, -1), -1)
    add_difference_adjoint(gradient, _upwind_adjoint(share.mul_(uy), uy, ahead_y, sign, -2), -2)
    return gradient, norm.mul_(g)


def _curvature_backward(g: Tensor, planes: _Planes, tensor: Tensor, by_tensor: Tensor, gradient: Tensor) -> None:
    """Add the gradients of (2 div A n) (2 |∇φ|) by φ, for a fixed A, and by A."""
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
    """Add the gradient through the sums in A to ``by_phi``."""
    by_sums[:, 0::2] *= 2

    def add(place: Any, mask: Tensor | None, image: slice) -> None:
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

    _each(add, phi, present)


@_step_backward.register_fake
def _(by_out: Tensor, phi: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return phi.new_empty(phi.shape), phi.new_empty(phi.shape)


def _keep_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    phi, speed, present, *ctx.options = inputs
    ctx.save_for_backward(phi, speed, present, output[1])


def _differentiate_step(ctx: Any, by_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    by_phi, by_speed = _step_backward(by_out, *ctx.saved_tensors, *ctx.options)
    return by_phi, by_speed, *[None] * 6


multiphase_step.register_autograd(_differentiate_step, setup_context=_keep_step)
_step_backward.register_autograd(refuse_second_derivative)
