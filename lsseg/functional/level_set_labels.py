"""Level-set energies of labels: no one-hot truth, nothing of the size of the logits but the logits and their gradient.

Legend: B images, C classes, P pixels of an image, b×C×n a block of them. The equations are those of
:mod:`lsseg.functional.level_set`. The work is an opaque custom operator, so that ``torch.compile`` takes it whole. On a
CPU it is done in blocks of pixels that stay in the cache, on a GPU by Triton's kernels
(:mod:`lsseg.functional.kernels.level_set`), and elsewhere in whole tensors.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.heaviside import dirac, heaviside
from lsseg.functional.once import Gradient, Once

Place = tuple[slice, slice, slice]


def terms(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    epsilon: float,
    kind: str,
    mean: bool,
    cross_entropy: bool,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy over valid pixels, and the energies B×C.

    Args:
        logits: B×C×spatial, C at least 2.
        labels: B×spatial.
        ignore_index: Label of void pixels.
        epsilon: ε.
        kind: Of Heaviside function.
        mean: Whether energies are per valid pixel, or summed.
        cross_entropy: Whether the cross-entropy is wanted; 0 (or a number that means nothing) otherwise.
        triton: Whether Triton's kernels do the work.
    """
    entropy, energies, _, _ = _Terms.apply(logits, labels, ignore_index, epsilon, kind, mean, cross_entropy, triton)
    return entropy, energies


def _blocks(logits: Tensor, labels: Tensor, ignore_index: int) -> Iterator[tuple[Place, Tensor, Tensor, Tensor]]:
    """A place in B×C×P, its logits x (b×C×n, float32 at least), labels y (b×1×n, 0 where void), and what is valid."""
    scores, labels = logits.flatten(2), labels.flatten(1).unsqueeze(1).long()
    for place in blocks.of_pixels(scores):
        label = labels[place]
        valid = label != ignore_index
        yield place, scores[place].to(work_dtype(logits)), torch.where(valid, label, 0), valid


def work_dtype(logits: Tensor) -> torch.dtype:
    """What is computed in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def gradient_format(logits: Tensor) -> torch.memory_format:
    """Channels-last where the logits are, else contiguous: of both, pixels flatten to a view."""
    if logits.is_contiguous() or logits.ndim not in (4, 5):
        return torch.contiguous_format
    last = torch.channels_last if logits.ndim == 4 else torch.channels_last_3d
    return last if logits.is_contiguous(memory_format=last) else torch.contiguous_format


def _known(labels: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Refuse labels that name no class. Elsewhere than on a CPU, which would be waited for: 0, and which were wrong."""
    if labels.device.type != "cpu":
        wrong = (labels < 0) | (labels >= classes)
        return labels.masked_fill(wrong, 0), wrong
    if labels.numel():
        low, high = labels.aminmax()
        if low < 0 or high >= classes:
            label = int(low if low < 0 else high)
            raise ValueError(
                f"target holds the label {label}: expected 0..{classes - 1} or the ignore index {ignore_index}"
            )
    return labels, None


def _marked(values: Tensor, wrong: Tensor | None) -> Tensor:
    """No numbers where a label is wrong, so that the loss is none."""
    return values if wrong is None else values.masked_fill(wrong, torch.nan)


def drop_void(values: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the values (b×C×n) of void pixels, in place; on a CPU, where asking is free, only if there are any."""
    if valid is None or (values.device.type == "cpu" and bool(valid.all())):
        return values
    return values.masked_fill_(~valid, 0)


@torch.library.custom_op("lsseg::cross_entropy_level_set", mutates_args=())
def _forward(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    epsilon: float,
    kind: str,
    mean: bool,
    cross_entropy: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy, energies, ∂energy/∂h as (B, 2, C) (everywhere; more at the label) and 1/(valid pixels)."""
    if triton:
        from lsseg.functional.kernels.level_set import sums_of

        return sums_of(logits, labels, epsilon, kind, ignore_index, mean)
    images, classes = logits.shape[:2]
    inside, hits, sizes = (logits.new_zeros(images, classes, dtype=torch.float64) for _ in range(3))
    negative_log = logits.new_zeros((), dtype=torch.float64)
    for (image, *_), x, y, valid in _blocks(logits, labels, ignore_index):
        y, wrong = _known(y, classes, ignore_index)
        p = torch.softmax(x, 1)
        if cross_entropy:
            # log Σ exp x, read off the likeliest class: its probability is at least 1/C, so its logarithm is accurate.
            log_sum = x.amax(1, keepdim=True) - p.amax(1, keepdim=True).log()
            negative_log += drop_void(_marked((log_sum - x.gather(1, y)).double(), wrong), valid).sum()
        h = drop_void(heaviside(p.sub_(0.5), epsilon, kind), valid)  # type: ignore[arg-type]
        label = y.squeeze(1)
        inside[image] += h.sum(2, dtype=torch.float64)
        at_label = _marked(h.gather(1, y), wrong).squeeze(1).double()
        hits[image] += torch.zeros_like(hits[image]).scatter_add_(1, label, at_label)
        sizes[image] += torch.zeros_like(sizes[image]).scatter_add_(1, label, valid.squeeze(1).double())
    energies, slope = _energies_and_slope(inside, hits, sizes, mean)
    weight = sizes.sum().clamp_min(1).reciprocal()
    dtype = work_dtype(logits)
    return (negative_log * weight).to(dtype), energies.to(dtype), slope.to(dtype), weight.to(dtype)


def _energies_and_slope(inside: Tensor, hits: Tensor, sizes: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    """Energies and their derivatives by h from the sums S, A, T of each image and class (all B×C, float64)."""
    count = sizes.sum(1, keepdim=True)
    outside = count - inside
    misses = sizes - hits
    # A region of zero area has zero hits or misses too: any finite mean makes its term 0.
    # (Rounding can put the last digit of a mean above 1.)
    c1 = (hits / torch.where(inside > 0, inside, 1.0)).clamp_max(1)
    c2 = (misses / torch.where(outside > 0, outside, 1.0)).clamp_max(1)
    scale = (sizes > 0).double() / (count.clamp_min(1) if mean else 1.0)
    energies = (hits * (1 - c1) + misses * (1 - c2)) * scale
    slope = torch.stack([c1.square() - c2.square(), 2 * (c2 - c1)], 1) * scale.unsqueeze(1)
    return energies, slope


@_forward.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    epsilon: float,
    kind: str,
    mean: bool,
    cross_entropy: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, classes = logits.shape[:2]
    scalar = logits.new_empty((), dtype=work_dtype(logits))
    energies = scalar.new_empty(images, classes)
    return scalar, energies, scalar.new_empty(images, 2, classes), torch.empty_like(scalar)


@torch.library.custom_op("lsseg::cross_entropy_level_set_backward", mutates_args=())
def _backward(
    logits: Tensor,
    labels: Tensor,
    slope: Tensor,
    pixel_weight: Tensor,
    ignore_index: int,
    epsilon: float,
    kind: str,
    triton: bool,
) -> Tensor:
    """Gradient by the logits; ``slope`` and ``pixel_weight`` already hold the incoming gradients of the two terms."""
    gradient = torch.empty_like(logits, memory_format=gradient_format(logits))
    if triton:
        from lsseg.functional.kernels.level_set import write_gradient

        write_gradient(logits, labels, slope, pixel_weight, epsilon, kind, ignore_index, gradient)
        return gradient
    flat = gradient.flatten(2)
    everywhere, at_label = slope.unsqueeze(3).unbind(1)
    for place, x, y, valid in _blocks(logits, labels, ignore_index):
        y, _ = _known(y, logits.shape[1], ignore_index)
        image = place[0]
        p = torch.softmax(x, 1)
        delta = dirac(p - 0.5, epsilon, kind)  # type: ignore[arg-type]
        more = delta.gather(1, y) * at_label[image].squeeze(2).gather(1, y.squeeze(1)).unsqueeze(1)
        by_p = delta.mul_(everywhere[image]).scatter_add_(1, y, more)
        # Through the softmax: p (u - Σ p u); the cross-entropy adds pixel_weight (p - 1[label]) to it.
        total = (p * by_p).sum(1, keepdim=True).sub_(pixel_weight)
        block = p.mul_(by_p.sub_(total)).scatter_add_(1, y, -pixel_weight.expand_as(more))
        flat[place] = drop_void(block, valid)
    return gradient


@_backward.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    slope: Tensor,
    pixel_weight: Tensor,
    ignore_index: int,
    epsilon: float,
    kind: str,
    triton: bool,
) -> Tensor:
    return torch.empty_like(logits, memory_format=gradient_format(logits))


class _Terms(Once):
    @staticmethod
    def forward(
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        epsilon: float,
        kind: str,
        mean: bool,
        cross_entropy: bool,
        triton: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        results: tuple[Tensor, Tensor, Tensor, Tensor] = _forward(
            logits, labels, ignore_index, epsilon, kind, mean, cross_entropy, triton
        )
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, labels, ctx.ignore_index, ctx.epsilon, ctx.kind, _, ctx.cross_entropy, ctx.triton = inputs
        ctx.save_for_backward(logits, labels, output[2], output[3])

    @staticmethod
    def backward(ctx: Any, by_cross_entropy: Tensor, by_energies: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, slope, weight = ctx.saved_tensors
        pixel_weight = by_cross_entropy * weight * float(ctx.cross_entropy)
        options = ctx.ignore_index, ctx.epsilon, ctx.kind, ctx.triton
        gradient = _Gradient.apply(logits, labels, slope * by_energies.unsqueeze(1), pixel_weight, *options)
        return gradient, *[None] * 7


class _Gradient(Gradient):
    @staticmethod
    def forward(
        logits: Tensor,
        labels: Tensor,
        slope: Tensor,
        pixel_weight: Tensor,
        ignore_index: int,
        epsilon: float,
        kind: str,
        triton: bool,
    ) -> Tensor:
        gradient: Tensor = _backward(logits, labels, slope, pixel_weight, ignore_index, epsilon, kind, triton)
        return gradient


def loop_over(operator: Any) -> Callable[..., tuple[Any, Any]]:
    """What ``torch.func.vmap`` does with an operator: one call after another."""

    def batched(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def one(index: int) -> Any:
            each = zip(arguments, in_dims, strict=True)
            return operator(*(value if dim is None else value.select(dim, index) for value, dim in each))

        results = [one(index) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(values) for values in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return batched


_forward.register_vmap(loop_over(_forward))
_backward.register_vmap(loop_over(_backward))
