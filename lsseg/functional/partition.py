"""Partitions images by their scores: distances, likelihoods, and the competition of the classes (Zhang 2019).

Legend: B images, C classes, D features, H×W pixels, b images in a block. The functions implement algorithm 1 and eq.
9-10, in O(C) operations per pixel.

In the competition the maximum over the other classes needs only the two largest values of each pixel. The competition
is an opaque custom operator with an analytic backward pass. On a CPU it takes one image at a time, on a GPU it uses
Triton's kernels, and elsewhere it takes all images at once.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.distance import signed_distance
from lsseg.functional.kernels import Kernels, use_triton

# A region's standard deviation is at least a tenth of the image's, because that of a flat region would be 0.
VARIANCE_FLOOR = 0.01


def largest_class(scores: Tensor) -> Tensor:
    """Return the label of each pixel's largest score, or the first of equal ones (B×C×H×W to B×H×W int64).

    >>> largest_class(torch.tensor([0.2, 0.5, 0.5]).view(1, 3, 1, 1)).item()
    1
    """
    if not blocks.in_cache(scores.device):
        return scores.argmax(1)
    # torch's argmax along a strided dimension is some ten times slower than this loop over planes.
    labels = torch.zeros(len(scores), *scores.shape[2:], dtype=torch.int64)
    for planes, label in zip(scores.detach(), labels, strict=True):
        best, chosen = planes[0].clone(), label.to(torch.int16)
        for number, plane in enumerate(planes[1:], start=1):
            larger = plane > best
            chosen.masked_fill_(larger, number)
            torch.maximum(best, plane, out=best)
        label.copy_(chosen)
    return labels


def regions(labels: Tensor, num_classes: int) -> Tensor:
    """Return the region of every class (B×spatial to B×C×spatial bool). Labels outside 0..C-1, such as void, have none.

    >>> regions(torch.tensor([[[0, 1, 255]]]), 2)[0, :, 0].tolist()
    [[True, False, False], [False, True, False]]
    """
    narrow = torch.uint8 if num_classes <= 255 else torch.int32  # needs less memory to read than int64
    classes = torch.arange(num_classes, device=labels.device, dtype=narrow)
    if labels.dtype != torch.uint8:
        labels = labels.long().clamp(-1, num_classes).to(narrow)  # in uint8 -1 is 255, which is no class, either
    return labels[:, None] == classes.view(-1, *[1] * (labels.ndim - 1))


def partition_level_sets(scores: Tensor, region: Tensor, truncation: float = 10.0) -> Tensor:
    """Return φ_i = d_i/(2τ) + S_i - ½ (Zhang 2019, algorithm 1, sign flipped).

    d_i is the signed distance to the contour of class i in the partition, clipped to ±τ, so that d_i/(2τ) lies in
    [-½, ½]. It passes no gradient. S_i - ½ passes one: φ_i grows with S_i.

    Args:
        scores: S, B×C×H×W probabilities.
        region: B×C×H×W bool, the region of every class (of the largest score).
        truncation: τ > 0 in pixels.

    Returns:
        φ in [-1, 1], positive inside, the shape of ``scores``.

    Raises:
        ValueError: If τ is not positive.

    >>> scores = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    >>> partition_level_sets(scores, scores > 0.5).flatten()
    tensor([ 0.7500, -0.7500])
    """
    offset = signed_distance(region, truncation).to(scores.dtype).mul_(0.5 / truncation).sub_(0.5)
    return scores + offset


def gaussian_log_posterior(values: Tensor, scores: Tensor, region: Tensor) -> Tensor:
    """Return log f_i/Σ_j f_j, where f_i is a Gaussian of the features in region i (Zhang 2019, eq. 9).

    Each region of each image has its own mean and variance of every feature, weighted by the region's scores. The
    features are taken as independent. A posterior can be compared with ρ for every D, unlike the likelihood. Features
    are first standardised over the image, so their scale does not matter. 1 % of the image's variance is added to a
    region's.

    Args:
        values: B×D×H×W, colours or deep features.
        scores: S, B×C×H×W probabilities.
        region: B×C×H×W bool, the region of every class.

    Returns:
        B×C×H×W; -∞ for a class without a region.

    >>> values = torch.tensor([0.0, 0.1, 0.9, 1.0]).view(1, 1, 1, 4)
    >>> region = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).view(1, 3, 1, 4) > 0
    >>> gaussian_log_posterior(values, region.float(), region).exp()[0, :, 0].round()
    tensor([[1., 1., 0., 0.],
            [0., 0., 1., 1.],
            [0., 0., 0., 0.]])
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    x = values.to(dtype).flatten(2)
    spread, mean = torch.var_mean(x, 2, keepdim=True, correction=0)
    x = (x - mean) * (spread + 1e-8).rsqrt()
    weight = (scores.to(dtype) * region).flatten(2)
    total = weight.sum(2, keepdim=True)
    powers = torch.cat([x, x.square()], 1)
    # All sums of all classes are one product of matrices, and so is the quadratic form at every pixel.
    first, second = torch.bmm(weight / total.clamp_min(1e-8), powers.transpose(1, 2)).chunk(2, 2)
    variance = (second - first.square()).clamp_min(0) + VARIANCE_FLOOR
    form = torch.cat([first / variance, -0.5 / variance], 2)
    constant = -0.5 * (first.square() / variance + variance.log()).sum(2, keepdim=True)
    log_f = torch.baddbmm(constant, form, powers).masked_fill(total <= 0, -torch.inf)
    return torch.log_softmax(log_f, 1).view(scores.shape)


# This replaces |log f| of a likelihood of exactly 0 or ∞. It is finite, and far beyond usual speed limits.
LOG_RANGE = 1e4


def competition(
    log_likelihood: Tensor, rho: float = 0.5, speed_limit: float = 1.0, kernels: Kernels = "auto"
) -> Tensor:
    """Return F of every class (Zhang 2019, eq. 9-10, ρ inside the logarithm), B×C×H×W, clipped to ± the speed limit.

    ``kernels`` is ``auto`` (Triton on a GPU), ``triton`` or ``torch``.

    >>> competition(torch.tensor([0.7, 0.2, 0.1]).log().view(1, 3, 1, 1), speed_limit=9).flatten()
    tensor([ 0.3365, -1.2528, -1.9459])
    """
    return _competition(log_likelihood, math.log(rho), speed_limit, use_triton(kernels, log_likelihood))


def _images(x: Tensor) -> list[slice]:
    """Return the blocks of images: one image each on a CPU, all images in one block elsewhere."""
    return [slice(b, b + 1) for b in range(len(x))] if blocks.in_cache(x.device) else [slice(None)]


def _finite(plane: Tensor) -> Tensor:
    """Return a copy without infinities. Values that are clipped exceed the speed limit and pass no gradient."""
    return plane.clamp(-LOG_RANGE, LOG_RANGE)


def equal(one: Tensor, other: Tensor) -> Tensor:
    """Return 1 where both are equal, else 0, as numbers.

    On a CPU this is four times as fast as a bool mask, and so are the operations that use it.
    """
    return torch.eq(one, other, out=torch.empty_like(one))


def _two_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two largest values over the classes of b×C×H×W, each b×H×W. With one class the second is -∞."""
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
        # Of two equally large classes each has the other as its rival, because ``second`` then equals ``first``.
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
        # The rivals receive these gradients only where they exceed ρ, because otherwise ρ takes their place.
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
    """Refuse a second derivative, as the backward pass of a backward operator."""
    raise RuntimeError("level-set evolutions are differentiable once; their second derivatives are not implemented")


_competition.register_autograd(_differentiate_competition, setup_context=_keep_competition)
_competition_backward.register_autograd(refuse_second_derivative)
