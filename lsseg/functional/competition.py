"""Competition of the classes of a multiphase level set (Zhang 2019, eq. 9-10), O(C) per pixel.

Legend: B images, C classes, H×W pixels; b images of a block.

The maximum over the other classes needs the two best of each pixel only. An opaque custom operator with an analytic
backward, worked through plane by plane on a CPU, by Triton's kernels on a GPU, and elsewhere everything at once.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.kernels import Kernels, use_triton

# log f of a likelihood of exactly 0 or ∞: finite, and beyond everything that the speed limit lets through.
LOG_RANGE = 1e4


def competition(
    log_likelihood: Tensor, rho: float = 0.5, speed_limit: float = 1.0, kernels: Kernels = "auto"
) -> Tensor:
    """F of every class (Zhang 2019, eq. 9-10 with ρ inside the logarithm), B×C×H×W, clipped to ± the speed limit.

    ``kernels`` is ``auto`` (Triton's on a GPU), ``triton`` or ``torch``.

    >>> competition(torch.tensor([0.7, 0.2, 0.1]).log().view(1, 3, 1, 1), speed_limit=9).flatten()
    tensor([ 0.3365, -1.2528, -1.9459])
    """
    return _competition(log_likelihood, math.log(rho), speed_limit, use_triton(kernels, log_likelihood))


def _images(x: Tensor) -> list[slice]:
    """One image at a time on a CPU, all of them elsewhere."""
    return [slice(b, b + 1) for b in range(len(x))] if blocks.in_cache(x.device) else [slice(None)]


def _finite(plane: Tensor) -> Tensor:
    """A copy without infinities; values that far out are beyond the speed limit and pass no gradient."""
    return plane.clamp(-LOG_RANGE, LOG_RANGE)


def equal(one: Tensor, other: Tensor) -> Tensor:
    """1 where both are equal, else 0, as numbers: on a CPU four times as fast as a mask, and so is what follows."""
    return torch.eq(one, other, out=torch.empty_like(one))


def _two_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the second largest over the classes of b×C×H×W, each b×H×W (-∞ for the second of one class)."""
    first = _finite(x[:, 0])
    second = torch.full_like(first, -math.inf)
    lower = torch.empty_like(first)
    for plane in map(_finite, x.unbind(1)[1:]):
        torch.minimum(first, plane, out=lower)
        torch.maximum(second, lower, out=second)
        torch.maximum(first, plane, out=first)
    return first, second


@torch.library.custom_op("lsseg::multiphase_competition", mutates_args=())
def _competition(log_f: Tensor, log_rho: float, limit: float, triton: bool) -> Tensor:
    if triton:
        from lsseg.functional.kernels import partition as kernels

        return kernels.competition(log_f, log_rho, limit, LOG_RANGE)
    speed = torch.empty(log_f.shape, dtype=log_f.dtype, device=log_f.device)
    for image in _images(log_f):
        first, second = _two_largest(log_f[image])
        # Of equals each has the other as its rival, and then the second is the first.
        over_first, over_second = first.clamp_min(log_rho), second.clamp_min(log_rho)
        for plane, out in zip(map(_finite, log_f[image].unbind(1)), speed[image].unbind(1), strict=True):
            torch.sub(plane, torch.where(plane == first, over_second, over_first), out=out)
            out.clamp_(-limit, limit)
    return speed


@_competition.register_fake
def _(log_f: Tensor, log_rho: float, limit: float, triton: bool) -> Tensor:
    return log_f.new_empty(log_f.shape)


@torch.library.custom_op("lsseg::multiphase_competition_backward", mutates_args=())
def _competition_backward(by_speed: Tensor, log_f: Tensor, log_rho: float, limit: float, triton: bool) -> Tensor:
    if triton:
        from lsseg.functional.kernels import partition as kernels

        return kernels.competition_backward(by_speed, log_f, log_rho, limit, LOG_RANGE)
    by_log_f = torch.empty(log_f.shape, dtype=log_f.dtype, device=log_f.device)
    for image in _images(log_f):
        first, second = _two_largest(log_f[image])
        over_first, over_second = first.clamp_min(log_rho), second.clamp_min(log_rho)
        to_first, to_second = torch.zeros_like(first), torch.zeros_like(first)
        outs = by_log_f[image].unbind(1)
        for plane, gradient, out in zip(log_f[image].unbind(1), by_speed[image].unbind(1), outs, strict=True):
            won = equal(plane, first)
            excess = torch.lerp(over_first, over_second, won).sub_(plane).abs_()
            torch.mul(gradient, torch.le(excess, limit, out=excess), out=out)
            owed = won.mul_(out)
            to_second -= owed
            to_first += owed.sub_(out)
        # What the rivals owe, unless it is ρ that they are measured against.
        to_first *= first > log_rho
        to_second *= (second > log_rho) & (second < first)
        for plane, out in zip(log_f[image].unbind(1), outs, strict=True):
            out.addcmul_(to_first, equal(plane, first)).addcmul_(to_second, equal(plane, second))
    return by_log_f


@_competition_backward.register_fake
def _(by_speed: Tensor, log_f: Tensor, log_rho: float, limit: float, triton: bool) -> Tensor:
    return log_f.new_empty(log_f.shape)


def _keep_competition(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    log_f, *ctx.options = inputs
    ctx.save_for_backward(log_f)


def _differentiate_competition(ctx: Any, by_speed: Tensor) -> tuple[Tensor | None, ...]:
    return _competition_backward(by_speed, *ctx.saved_tensors, *ctx.options), None, None, None


def refuse_second_derivative(ctx: Any, *_: Tensor) -> None:
    """The backward of a backward operator."""
    raise RuntimeError("level-set evolutions are differentiable once; their second derivatives are not implemented")


_competition.register_autograd(_differentiate_competition, setup_context=_keep_competition)
_competition_backward.register_autograd(refuse_second_derivative)
