"""Computes level-set energies of a truth with its own value for every class: soft labels, overlapping or single masks.

Legend: B images, C classes, b×C×n a block of logits with n pixels. The equations are those of
:mod:`lsseg.functional.level_set`. The work is an opaque custom operator. Its blocks stay in a CPU's cache.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.blocks import Gradient, Once
from lsseg.functional.heaviside import dirac, heaviside
from lsseg.functional.level_set_labels import Place, Scaling, drop_void, gradient_format, loop_over, scaled, work_dtype


def terms(
    logits: Tensor,
    truth: Tensor,
    valid: Tensor | None,
    softmax: bool,
    epsilon: float,
    kind: str,
    scaling: Scaling,
    cross_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over valid pixels, and the energies B×C.

    Args:
        logits: B×C×spatial.
        truth: G of the same shape: bool, integers 0 and 1, or floating values in [0, 1].
        valid: Bool, B×spatial, or None.
        softmax: Whether the probabilities are a softmax over classes; otherwise each is a sigmoid.
        epsilon: ε.
        kind: Name of the Heaviside function.
        scaling: See :func:`~lsseg.functional.level_set_labels.scaled`.
        cross_entropy: Whether the cross-entropy is wanted; otherwise it is 0.
    """
    entropy, energies, _, _ = _Terms.apply(logits, truth, valid, softmax, epsilon, kind, scaling, cross_entropy)
    return entropy, energies


@torch.library.custom_op("lsseg::cross_entropy_level_set_of_regions", mutates_args=())
def _forward(
    logits: Tensor,
    truth: Tensor,
    valid: Tensor | None,
    softmax: bool,
    epsilon: float,
    kind: str,
    scaling: str,
    cross_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cross-entropy, energies, ∂energy/∂h (B×2×C: factors of 1 and G) and 1/(terms of the cross-entropy)."""
    scores, regions = logits.flatten(2), truth.flatten(2)
    counted = None if valid is None else valid.flatten(1).unsqueeze(1)
    images, classes, pixels = scores.shape
    count = scores.new_full((images, 1), pixels, dtype=torch.float64)
    if counted is not None:
        count = counted.sum(2, dtype=torch.float64)

    def add_up(places: Sequence[Place]) -> tuple[Tensor, Tensor]:
        sums = scores.new_zeros(5, images, classes, dtype=torch.float64)
        entropy = scores.new_zeros((), dtype=torch.float64)
        for place in places:
            x, g, keep = _block(scores, regions, counted, place)
            if cross_entropy:
                entropy += _cross_entropy(x, g, softmax, keep).sum(dtype=torch.float64)
            p = torch.softmax(x, 1) if softmax else torch.sigmoid(x)
            h = drop_void(heaviside(p.sub_(0.5), epsilon, kind), keep)  # type: ignore[arg-type]
            gh = g * h
            for row, values in zip(sums, (h, gh, g, gh.mul(g), g.square()), strict=True):
                row[place[0]] += values.sum(2).double()  # sums over blocks are in float64
        return sums, entropy

    shares = blocks.in_threads(add_up, list(blocks.of_pixels(scores)), scores.device)
    sums, entropy = (torch.stack(part).sum(0) for part in zip(*shares, strict=True))
    energies, slope = _energies_and_slope(sums, count, scaling)
    weight = 1 / (count.sum() * (1 if softmax else classes)).clamp_min(1)
    dtype = work_dtype(logits)
    return (entropy * weight).to(dtype), energies.to(dtype), slope.to(dtype), weight.to(dtype)


def _block(
    scores: Tensor, regions: Tensor, counted: Tensor | None, place: tuple[slice, slice, slice]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the logits, the truth (0 where void) and the valid pixels of a block."""
    keep = None if counted is None else counted[place]
    x = scores[place].to(work_dtype(scores))
    g = regions[place].to(x.dtype, copy=True)
    return x, _checked(drop_void(g, keep)), keep


def _checked(truth: Tensor) -> Tensor:
    """Refuse values outside [0, 1]. On devices other than a CPU, replace them by NaN instead of waiting."""
    if truth.device.type != "cpu":
        return torch.where((truth >= 0) & (truth <= 1), truth, torch.nan)
    if truth.numel():
        low, high = truth.aminmax()
        if not (low >= 0 and high <= 1):
            wrong = float(high if high > 1 else low)
            raise ValueError(
                f"target holds the value {wrong:g}: the values of a soft target or a mask must lie in [0, 1]"
            )
    return truth


def _cross_entropy(x: Tensor, g: Tensor, softmax: bool, keep: Tensor | None) -> Tensor:
    """Return -Σ G log P of every pixel, or the binary cross-entropy of every pixel and class, and 0 where void."""
    if softmax:
        return drop_void(-(g * torch.log_softmax(x, 1)).sum(1, keepdim=True), keep)
    return drop_void(F.softplus(x) - g * x, keep)


def _energies_and_slope(sums: Tensor, count: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """Return the energies and their derivatives by h, given S, A, T, R, Q (each B×C, float64) and N (B×1)."""
    inside, hits, sizes, squared_hits, squared_sizes = sums
    outside, misses = count - inside, sizes - hits
    # A region of zero area has zero hits or misses, too, so any finite mean makes its term 0.
    c1 = (hits / torch.where(inside > 0, inside, 1.0)).clamp(0, 1)
    c2 = (misses / torch.where(outside > 0, outside, 1.0)).clamp(0, 1)
    energies = (squared_hits - hits * c1) + (squared_sizes - squared_hits - misses * c2)
    slope = torch.stack([c1.square() - c2.square(), 2 * (c2 - c1)], 1)
    return scaled(energies.clamp_min(0), slope, sizes, squared_sizes, count, scaling)


@_forward.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, classes = logits.shape[:2]
    scalar = logits.new_empty((), dtype=work_dtype(logits))
    energies = scalar.new_empty(images, classes)
    return scalar, energies, scalar.new_empty(images, 2, classes), torch.empty_like(scalar)


@torch.library.custom_op("lsseg::cross_entropy_level_set_of_regions_backward", mutates_args=())
def _backward(
    logits: Tensor,
    truth: Tensor,
    valid: Tensor | None,
    slope: Tensor,
    weight: Tensor,
    softmax: bool,
    epsilon: float,
    kind: str,
) -> Tensor:
    """Return the gradient by the logits. ``slope`` and ``weight`` include both terms' incoming gradients."""
    gradient = torch.empty_like(logits, memory_format=gradient_format(logits))
    scores, regions, flat = logits.flatten(2), truth.flatten(2), gradient.flatten(2)
    counted = None if valid is None else valid.flatten(1).unsqueeze(1)
    everywhere, by_truth = slope.unsqueeze(3).unbind(1)

    def write(places: Sequence[Place]) -> None:
        for place in places:
            x, g, keep = _block(scores, regions, counted, place)
            p = torch.softmax(x, 1) if softmax else torch.sigmoid(x)
            image = place[0]
            by_p = torch.addcmul(everywhere[image], by_truth[image], g)
            by_p.mul_(dirac(p - 0.5, epsilon, kind))  # type: ignore[arg-type]
            if softmax:  # it makes p (u - Σ p u) of the gradient u by p; the cross-entropy adds weight (p Σ g - g)
                total = (p * by_p).sum(1, keepdim=True).sub_(g.sum(1, keepdim=True) * weight)
                block = p.mul_(by_p.sub_(total)).sub_(g.mul_(weight))
            else:
                block = by_p.mul_(p * (1 - p)).add_((p - g).mul_(weight))
            flat[place] = drop_void(block, keep)

    blocks.in_threads(write, list(blocks.of_pixels(scores)), scores.device)
    return gradient


@_backward.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=gradient_format(logits))


class _Terms(Once):
    @staticmethod
    def forward(
        logits: Tensor,
        truth: Tensor,
        valid: Tensor | None,
        softmax: bool,
        epsilon: float,
        kind: str,
        scaling: str,
        cross_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        results: tuple[Tensor, Tensor, Tensor, Tensor] = _forward(
            logits, truth, valid, softmax, epsilon, kind, scaling, cross_entropy
        )
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, truth, valid, ctx.softmax, ctx.epsilon, ctx.kind, _, ctx.cross_entropy = inputs
        ctx.save_for_backward(logits, truth, valid, output[2], output[3])

    @staticmethod
    def backward(ctx: Any, by_cross_entropy: Tensor, by_energies: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, truth, valid, slope, weight = ctx.saved_tensors
        weight = by_cross_entropy * weight * float(ctx.cross_entropy)
        options = ctx.softmax, ctx.epsilon, ctx.kind
        gradient = _Gradient.apply(logits, truth, valid, slope * by_energies.unsqueeze(1), weight, *options)
        return gradient, *[None] * 7


class _Gradient(Gradient):
    @staticmethod
    def forward(
        logits: Tensor,
        truth: Tensor,
        valid: Tensor | None,
        slope: Tensor,
        weight: Tensor,
        softmax: bool,
        epsilon: float,
        kind: str,
    ) -> Tensor:
        gradient: Tensor = _backward(logits, truth, valid, slope, weight, softmax, epsilon, kind)
        return gradient


_forward.register_vmap(loop_over(_forward))
_backward.register_vmap(loop_over(_backward))
