"""Level-set energy on the ground truth (Kim 2019, eq. 4-8), in closed form with an analytic backward.

Legend: B images, C classes, H×W pixels, n pixels of a block, b images of a block.

For one class of one image let h = H_ε(P - ½) and, over the valid pixels, A = Σ G h, S = Σ h, T = Σ G, N = Σ 1. The
region means are c1 = A/S and c2 = (T-A)/(N-S). Because the truth G is binary, the energy collapses to

    E = A (1 - c1) + (T - A)(1 - c2)

and because c1 and c2 minimise E for a fixed h, its total derivative is ∂E/∂h = c1² - c2² + 2 G (c2 - c1) (eq. 7). So
the forward pass needs four sums per class, the backward pass two numbers per class and one more softmax: no one-hot
truth, no loop over classes, nothing of the size of the logits kept between the passes but the logits themselves.

The work is an opaque custom operator, so that ``torch.compile`` takes it whole, and is done in blocks of pixels that
stay in a CPU's cache; on a GPU by Triton's kernels (:mod:`lsseg.functional.kernels.level_set`), and elsewhere in whole
tensors.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from lsseg.functional.heaviside import HeavisideKind, check_heaviside, dirac, heaviside
from lsseg.functional.kernels import Kernels, use_triton

Reduction = Literal["mean", "sum"]

# Logits in one CPU block: 2 MB of float32. Smaller blocks pay for dispatch, larger ones for main memory.
BLOCK_ELEMENTS = 2**19
# Of more classes Triton's kernels do not make energies.
MOST_CLASSES = 1024


def level_set_energy(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 1 / 20,
    kind: HeavisideKind = "mahf",
    ignore_index: int = 255,
    reduction: Reduction = "mean",
    kernels: Kernels = "auto",
) -> Tensor:
    """Region-based level-set energy of softmax(logits) on the ground truth (Kim 2019, eq. 4-7).

    Only classes present among an image's valid pixels contribute. An image without valid pixels, and a region of zero
    area, contribute 0.

    Args:
        logits: B×C×H×W scores, any floating dtype and memory format; computed in float32 at least, summed in float64.
        target: B×H×W integer labels in 0..C-1, or ``ignore_index``.
        epsilon: Width of the Heaviside transition, in units of probability.
        kind: Heaviside approximation; ``hf`` passes no gradient, as in the paper.
        ignore_index: Label of void pixels, which belong to no sum.
        reduction: ``sum`` as printed: the batch mean of the energy summed over pixels (it grows with the image);
            ``mean``: the batch mean of the energy per valid pixel, independent of the resolution.
        kernels: ``auto``: Triton's on a GPU, where Triton is there; ``triton`` or ``torch`` force one or the other.

    Returns:
        Scalar, float32 (float64 for float64 logits). Differentiable once.

    Raises:
        ValueError: If shapes do not fit, a label is out of range, or an option is unknown.

    >>> logits = torch.tensor([[[[9.0, 9.0, -9.0]], [[-9.0, -9.0, 9.0]]]])
    >>> bool(level_set_energy(logits, torch.tensor([[[0, 0, 1]]])) < 1e-6)
    True
    """
    return _call(logits, target, epsilon, kind, ignore_index, reduction, kernels, cross_entropy=False)[1]


def cross_entropy_level_set(
    logits: Tensor,
    target: Tensor,
    epsilon: float = 1 / 20,
    kind: HeavisideKind = "mahf",
    ignore_index: int = 255,
    reduction: Reduction = "mean",
    kernels: Kernels = "auto",
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and level-set energy from one softmax (the two terms of Kim 2019, eq. 8).

    Args:
        logits: B×C×H×W scores.
        target: B×H×W integer labels in 0..C-1, or ``ignore_index``.
        epsilon: See :func:`level_set_energy`.
        kind: See :func:`level_set_energy`.
        ignore_index: Label of void pixels.
        reduction: Of the level-set energy; the cross-entropy is always the mean over the batch's valid pixels, 0 where
            there is none.
        kernels: See :func:`level_set_energy`.

    Returns:
        Two scalars: the cross-entropy and the level-set energy, both differentiable once.

    Raises:
        ValueError: As :func:`level_set_energy`.
    """
    return _call(logits, target, epsilon, kind, ignore_index, reduction, kernels, cross_entropy=True)


def _call(
    logits: Tensor,
    target: Tensor,
    epsilon: float,
    kind: HeavisideKind,
    ignore_index: int,
    reduction: Reduction,
    kernels: Kernels,
    cross_entropy: bool,
) -> tuple[Tensor, Tensor]:
    check_heaviside(epsilon, kind)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"expected logits B×C×H×W and a target B×H×W, not {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if not logits.is_floating_point() or target.is_floating_point():
        raise ValueError(f"expected floating logits and an integer target, not {logits.dtype} and {target.dtype}")
    triton = use_triton(kernels, logits) and logits.shape[1] <= MOST_CLASSES
    scalar_ce, energy, _, _ = _forward(logits, target, epsilon, kind, ignore_index, reduction, cross_entropy, triton)
    return scalar_ce, energy


def _blocks(
    logits: Tensor, target: Tensor, ignore_index: int
) -> Iterator[tuple[tuple[slice, slice, slice], Tensor, Tensor, Tensor]]:
    """Pieces to work through: cache-sized ones of one image on a CPU, everything at once elsewhere.

    Yields the piece's place in B×C×HW, its logits x (b×C×n, float32 at least), its labels y (b×1×n, 0 where void) and
    which pixels are valid (b×1×n).
    """
    images, classes = logits.shape[:2]
    scores, labels = logits.flatten(2), target.flatten(1).unsqueeze(1).long()
    pixels = scores.shape[2]
    per_image = logits.device.type == "cpu"
    rows, step = (1, max(1, BLOCK_ELEMENTS // max(classes, 1))) if per_image else (images, pixels)
    for row in range(0, images, rows):
        for start in range(0, pixels, max(step, 1)):
            place = slice(row, row + rows), slice(None), slice(start, start + step)
            label = labels[place]
            valid = label != ignore_index
            yield place, scores[place].to(_work_dtype(logits)), torch.where(valid, label, 0), valid


def _work_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _gradient_format(logits: Tensor) -> torch.memory_format:
    """Channels-last where the logits are, else contiguous: of both, pixels flatten to a view."""
    last = logits.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not logits.is_contiguous() else torch.contiguous_format


def _check_labels(label: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse labels that name no class; on a CPU only, elsewhere it would wait for the device at every step."""
    if label.device.type == "cpu" and label.numel():
        low, high = label.aminmax()
        if low < 0 or high >= classes:
            wrong = int(low if low < 0 else high)
            raise ValueError(
                f"target holds the label {wrong}: expected 0..{classes - 1} or the ignore index {ignore_index}"
            )


def _drop_void(values: Tensor, valid: Tensor) -> Tensor:
    """Zero the values (b×C×n) of void pixels, in place; on a CPU, where asking is free, only if there are any."""
    if values.device.type == "cpu" and bool(valid.all()):
        return values
    return values.masked_fill_(~valid, 0)


@torch.library.custom_op("lsseg::cross_entropy_level_set", mutates_args=())
def _forward(
    logits: Tensor,
    target: Tensor,
    epsilon: float,
    kind: str,
    ignore_index: int,
    reduction: str,
    cross_entropy: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns cross-entropy, energy, ∂energy/∂h as (B, 2, C) (everywhere; more at the label) and 1/(valid pixels)."""
    if triton:
        from lsseg.functional.kernels.level_set import sums_of

        return sums_of(logits, target, epsilon, kind, ignore_index, reduction == "mean")
    images, classes = logits.shape[:2]
    inside, hits, sizes = (logits.new_zeros(images, classes, dtype=torch.float64) for _ in range(3))
    negative_log = logits.new_zeros((), dtype=torch.float64)
    for (image, *_), x, y, valid in _blocks(logits, target, ignore_index):
        _check_labels(y, classes, ignore_index)
        p = torch.softmax(x, 1)
        if cross_entropy:
            # log Σ exp x, read off the likeliest class: its probability is at least 1/C, so its logarithm is accurate.
            log_sum = x.amax(1, keepdim=True) - p.amax(1, keepdim=True).log()
            negative_log += _drop_void((log_sum - x.gather(1, y)).double(), valid).sum()
        h = _drop_void(heaviside(p.sub_(0.5), epsilon, kind), valid)  # type: ignore[arg-type]
        label = y.squeeze(1)
        inside[image] += h.sum(2, dtype=torch.float64)
        hits[image] += torch.zeros_like(hits[image]).scatter_add_(1, label, h.gather(1, y).squeeze(1).double())
        sizes[image] += torch.zeros_like(sizes[image]).scatter_add_(1, label, valid.squeeze(1).double())
    energy, slope = _energy_and_slope(inside, hits, sizes, reduction)
    inverse_count = sizes.sum().clamp_min(1).reciprocal()
    dtype = _work_dtype(logits)
    return (negative_log * inverse_count).to(dtype), energy.to(dtype), slope.to(dtype), inverse_count.to(dtype)


def _energy_and_slope(inside: Tensor, hits: Tensor, sizes: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Energy and its derivative by h from the sums S, A, T of each image and class (all B×C, float64)."""
    count = sizes.sum(1, keepdim=True)
    outside = count - inside
    misses = sizes - hits
    # A region of zero area has zero hits or misses too: any finite mean makes its term 0.
    # (Rounding can put the last digit of a mean above 1.)
    c1 = (hits / torch.where(inside > 0, inside, 1.0)).clamp_max(1)
    c2 = (misses / torch.where(outside > 0, outside, 1.0)).clamp_max(1)
    scale = (sizes > 0).double() / (len(sizes) * (count.clamp_min(1) if reduction == "mean" else 1.0))
    energy = ((hits * (1 - c1) + misses * (1 - c2)) * scale).sum()
    slope = torch.stack([c1.square() - c2.square(), 2 * (c2 - c1)], 1) * scale.unsqueeze(1)
    return energy, slope


@_forward.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    epsilon: float,
    kind: str,
    ignore_index: int,
    reduction: str,
    cross_entropy: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, classes = logits.shape[:2]
    scalar = logits.new_empty((), dtype=_work_dtype(logits))
    return scalar, torch.empty_like(scalar), scalar.new_empty(images, 2, classes), torch.empty_like(scalar)


@torch.library.custom_op("lsseg::cross_entropy_level_set_backward", mutates_args=())
def _backward(
    logits: Tensor,
    target: Tensor,
    slope: Tensor,
    pixel_weight: Tensor,
    epsilon: float,
    kind: str,
    ignore_index: int,
    triton: bool,
) -> Tensor:
    """Gradient by the logits; ``slope`` and ``pixel_weight`` already hold the incoming gradients of the two terms."""
    gradient = torch.empty_like(logits, memory_format=_gradient_format(logits))
    if triton:
        from lsseg.functional.kernels.level_set import write_gradient

        write_gradient(logits, target, slope, pixel_weight, epsilon, kind, ignore_index, gradient)
        return gradient
    flat = gradient.flatten(2)
    everywhere, at_label = slope.unsqueeze(3).unbind(1)
    for place, x, y, valid in _blocks(logits, target, ignore_index):
        image = place[0]
        p = torch.softmax(x, 1)
        delta = dirac(p - 0.5, epsilon, kind)  # type: ignore[arg-type]
        more = delta.gather(1, y) * at_label[image].squeeze(2).gather(1, y.squeeze(1)).unsqueeze(1)
        by_p = delta.mul_(everywhere[image]).scatter_add_(1, y, more)
        # Through the softmax: p (u - Σ p u); the cross-entropy adds pixel_weight (p - 1[label]) to it.
        mean = (p * by_p).sum(1, keepdim=True).sub_(pixel_weight)
        block = p.mul_(by_p.sub_(mean)).scatter_add_(1, y, -pixel_weight.expand_as(more))
        flat[place] = _drop_void(block, valid)
    return gradient


@_backward.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    slope: Tensor,
    pixel_weight: Tensor,
    epsilon: float,
    kind: str,
    ignore_index: int,
    triton: bool,
) -> Tensor:
    return torch.empty_like(logits, memory_format=_gradient_format(logits))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, *options, ctx.cross_entropy, ctx.triton = inputs
    ctx.epsilon, ctx.kind, ctx.ignore_index, _ = options
    ctx.save_for_backward(logits, target, output[2], output[3])


def _differentiate(ctx: Any, by_cross_entropy: Tensor, by_energy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, slope, inverse_count = ctx.saved_tensors
    pixel_weight = by_cross_entropy * inverse_count * float(ctx.cross_entropy)
    options = ctx.epsilon, ctx.kind, ctx.ignore_index, ctx.triton
    gradient = _backward(logits, target, slope * by_energy, pixel_weight, *options)
    return gradient, *[None] * 7


def _refuse(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError("the level-set energy is differentiable once; its second derivative is not implemented")


_forward.register_autograd(_differentiate, setup_context=_setup_context)
_backward.register_autograd(_refuse)
