"""Computes level-set energies of labels without a one-hot truth.

Legend: B images, C classes, b×C×n a block of logits with n pixels. The equations are those of
:mod:`lsseg.functional.level_set`. The work is an opaque custom operator, so that ``torch.compile`` takes it whole. On a
CPU it works in blocks of pixels that stay in the cache. On a GPU it uses Triton's kernels
(:mod:`lsseg.functional.kernels.level_set`). In both cases only the logits and their gradient take memory of the logits'
size. Elsewhere it works on whole tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lsseg.functional import blocks
from lsseg.functional.blocks import Gradient, Once
from lsseg.functional.heaviside import dirac, heaviside

Place = tuple[slice, slice, slice]
Scaling = Literal["sum", "mean", "balanced", "log"]


def terms(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    epsilon: float,
    kind: str,
    scaling: Scaling,
    cross_entropy: bool,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over valid pixels, and the energies B×C.

    Args:
        logits: B×C×spatial, C at least 2.
        labels: B×spatial.
        ignore_index: Label of void pixels.
        epsilon: ε.
        kind: Name of the Heaviside function.
        scaling: See :func:`scaled`.
        cross_entropy: Whether the cross-entropy is wanted; otherwise the first result has no meaning.
        triton: Whether Triton's kernels do the work.
    """
    entropy, energies, _, _ = _Terms.apply(logits, labels, ignore_index, epsilon, kind, scaling, cross_entropy, triton)
    return entropy, energies


class _Sums(NamedTuple):
    """Holds S, A and T of every class (B×C) and the sum of the cross-entropy, all float64."""

    inside: Tensor
    hits: Tensor
    sizes: Tensor
    negative_log: Tensor


class _Blocks:
    """Divides logits and labels into blocks.

    Args:
        logits: B×C×spatial.
        labels: B×spatial.
        ignore_index: Label of void pixels.
    """

    def __init__(self, logits: Tensor, labels: Tensor, ignore_index: int) -> None:
        self.scores, self.labels = logits.flatten(2), labels.flatten(1).unsqueeze(1)
        self.ignore_index, self.dtype = ignore_index, work_dtype(logits)
        self.places = list(blocks.of_pixels(self.scores))

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return logits (b×C×n, float32 at least), labels (b×1×n, 0 where void), valid pixels and wrong labels."""
        label = self.labels[place].long()
        valid = label != self.ignore_index
        y, wrong = _known(torch.where(valid, label, 0), self.scores.shape[1], self.ignore_index)
        return self.scores[place].to(self.dtype), y, valid, wrong


def work_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of the computation: float64 for float64 logits, otherwise float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def gradient_format(logits: Tensor) -> torch.memory_format:
    """Return channels-last if the logits have it, else contiguous. Both allow a view that flattens the pixels."""
    if logits.is_contiguous() or logits.ndim not in (4, 5):
        return torch.contiguous_format
    last = torch.channels_last if logits.ndim == 4 else torch.channels_last_3d
    return last if logits.is_contiguous(memory_format=last) else torch.contiguous_format


def exponentials(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return every pixel's largest score, exp(x - largest) and its sum over classes: a softmax in fewer passes."""
    largest = x.amax(1, keepdim=True)
    e = (x - largest).exp_()
    return largest, e, e.sum(1, keepdim=True)


def step_of(e: Tensor, total: Tensor, epsilon: float, kind: str) -> Tensor:
    """Return H_ε(e/total - ½), and overwrite e."""
    if kind == "mahf":  # H is a logistic function of 2z/ε
        return e.mul_(2 / epsilon / total).sub_(1 / epsilon).sigmoid_()
    if kind == "ramp":  # without the detour by P - ½, in which small probabilities would lose their digits
        return e.mul_(0.5 / epsilon / total).add_(0.5 - 0.25 / epsilon).clamp_(0, 1)
    return heaviside(e.div_(total).sub_(0.5), epsilon, kind)  # type: ignore[arg-type]


def _known(labels: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Refuse labels that name no class. On devices other than a CPU, set them to 0 and return where they are.

    An error would have to wait for the device.
    """
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
    """Replace values by NaN where a label is wrong, so that the loss becomes NaN."""
    return values if wrong is None else values.masked_fill(wrong, torch.nan)


def drop_void(values: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the values (b×C×n) of void pixels in place. A CPU first checks at little cost whether there are any."""
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
    scaling: str,
    cross_entropy: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cross-entropy, energies, ∂energy/∂h (B×2×C: for all pixels; extra at the label) and 1/(valid pixels)."""
    if triton:
        from lsseg.functional.kernels.level_set import sums_of

        return sums_of(logits, labels, epsilon, kind, ignore_index, scaling)
    images, classes = logits.shape[:2]
    parts = _Blocks(logits, labels, ignore_index)

    def add_up(places: Sequence[Place]) -> _Sums:
        shape = (images, classes)
        sums = _Sums(*(logits.new_zeros(size, dtype=torch.float64) for size in (shape, shape, shape, ())))
        for place in places:
            _add(sums, place[0], parts[place], epsilon, kind, cross_entropy)
        return sums

    shares = blocks.in_threads(add_up, parts.places, logits.device)
    inside, hits, sizes, negative_log = (torch.stack(part).sum(0) for part in zip(*shares, strict=True))
    energies, slope = _energies_and_slope(inside, hits, sizes, scaling)
    weight = sizes.sum().clamp_min(1).reciprocal()
    dtype = work_dtype(logits)
    return (negative_log * weight).to(dtype), energies.to(dtype), slope.to(dtype), weight.to(dtype)


def _add(
    sums: _Sums,
    image: slice,
    block: tuple[Tensor, Tensor, Tensor, Tensor | None],
    epsilon: float,
    kind: str,
    cross_entropy: bool,
) -> None:
    """Add the sums of a block to ``sums``."""
    x, y, valid, wrong = block
    largest, e, total = exponentials(x)
    if cross_entropy:
        log_p = x.gather(1, y).sub_(largest).sub_(total.log())
        sums.negative_log.sub_(drop_void(_marked(log_p.double(), wrong), valid).sum())
    h = drop_void(step_of(e, total, epsilon, kind), valid)
    label, own = y.squeeze(1), sums.hits[image]
    sums.inside[image] += h.sum(2).double()  # sums over blocks are in float64
    own += torch.zeros_like(own).scatter_add_(1, label, _marked(h.gather(1, y), wrong).squeeze(1).double())
    sums.sizes[image] += torch.zeros_like(own).scatter_add_(1, label, valid.squeeze(1).double())


def _energies_and_slope(inside: Tensor, hits: Tensor, sizes: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """Return the energies and their derivatives by h, given S, A, T of each image and class (all B×C, float64)."""
    count = sizes.sum(1, keepdim=True)
    outside = count - inside
    misses = sizes - hits
    # A region of zero area has zero hits or misses, too, so any finite mean makes its term 0. The means are clamped,
    # because rounding can put the last digit of a mean above 1.
    c1 = (hits / torch.where(inside > 0, inside, 1.0)).clamp_max(1)
    c2 = (misses / torch.where(outside > 0, outside, 1.0)).clamp_max(1)
    slope = torch.stack([c1.square() - c2.square(), 2 * (c2 - c1)], 1)
    return scaled(hits * (1 - c1) + misses * (1 - c2), slope, sizes, sizes, count, scaling)


def scaled(
    energies: Tensor, slope: Tensor, sizes: Tensor, whole: Tensor, count: Tensor, scaling: str
) -> tuple[Tensor, Tensor]:
    """Scale the energies, which are sums over pixels, and their derivatives; an absent class gets 0.

    Args:
        energies: E, B×C.
        slope: ∂E/∂h, B×2×C.
        sizes: T = Σ G, B×C.
        whole: Q = Σ G², B×C, the energy of a class of which c1 and c2 explain nothing; 0 for an absent class.
        count: N, number of valid pixels, B×1.
        scaling: ``sum`` leaves them; ``mean`` divides by N; ``balanced`` by T and the number of the image's classes;
            ``log`` makes -log(1 - E/Q), divided by the number of the image's classes.
    """
    present = whole != 0  # NaN differs from 0, so it is kept
    classes = present.sum(1, keepdim=True).clamp_min(1)
    if scaling == "log":
        explained = torch.where(present, whole - energies, 1)
        scale = 1 / (explained * classes)
        energies = (torch.where(present, whole, 1) / explained).log().clamp_min(0) / classes
    else:
        size = torch.where(present, sizes, 1)
        scale = 1 / {"sum": torch.ones_like(size), "mean": count.clamp_min(1), "balanced": size * classes}[scaling]
        energies = energies * scale
    return torch.where(present, energies, 0), slope * torch.where(present, scale, 0).unsqueeze(1)


@_forward.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    """Return the gradient by the logits. ``slope`` and ``pixel_weight`` include both terms' incoming gradients."""
    gradient = torch.empty_like(logits, memory_format=gradient_format(logits))
    if triton:
        from lsseg.functional.kernels.level_set import write_gradient

        write_gradient(logits, labels, slope, pixel_weight, epsilon, kind, ignore_index, gradient)
        return gradient
    flat, parts = gradient.flatten(2), _Blocks(logits, labels, ignore_index)
    everywhere, at_label = slope.unsqueeze(3).unbind(1)

    def write(places: Sequence[Place]) -> None:
        for place in places:
            image = place[0]
            flat[place] = _block_gradient(parts[place], everywhere[image], at_label[image], pixel_weight, epsilon, kind)

    blocks.in_threads(write, parts.places, logits.device)
    return gradient


def _block_gradient(
    block: tuple[Tensor, Tensor, Tensor, Tensor | None],
    everywhere: Tensor,
    at_label: Tensor,
    pixel_weight: Tensor,
    epsilon: float,
    kind: str,
) -> Tensor:
    x, y, valid, _ = block
    _, p, total = exponentials(x)
    p.mul_(total.reciprocal_())
    delta = dirac(p - 0.5, epsilon, kind)  # type: ignore[arg-type]
    more = delta.gather(1, y) * at_label.squeeze(2).gather(1, y.squeeze(1)).unsqueeze(1)
    p_by_p = delta.mul_(everywhere).scatter_add_(1, y, more).mul_(p)
    # The softmax turns a gradient u by p into p (u - Σ p u). The cross-entropy adds pixel_weight (p - 1[label]).
    mean = p_by_p.sum(1, keepdim=True).sub_(pixel_weight)
    result = p_by_p.addcmul_(p, mean, value=-1).scatter_add_(1, y, -pixel_weight.expand_as(more))
    return drop_void(result, valid)


@_backward.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=gradient_format(logits))


class _Terms(Once):
    @staticmethod
    def forward(
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        epsilon: float,
        kind: str,
        scaling: str,
        cross_entropy: bool,
        triton: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        results: tuple[Tensor, Tensor, Tensor, Tensor] = _forward(
            logits, labels, ignore_index, epsilon, kind, scaling, cross_entropy, triton
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
    """Return the rule of ``torch.func.vmap`` for an operator, which makes one call after another."""

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
