"""Triton kernels of the level-set energy and its gradient, for :mod:`lsseg.functional.level_set` (Kim 2019, eq. 4-8).

Legend: B images, C classes, P = H·W pixels; a program works on BP pixels of one image, BC classes at a time.

Forward, each program reads its logits once and writes the sums S, A, T of every class and the cross-entropy of some
thousand pixels, B×chunks×(3C + 1); a second kernel adds up the chunks in float64, a third makes energy and slope of the
sums. Backward, one kernel reads the logits once and writes the gradient. Nothing is added atomically, so that a shape
has one order of summation and one result. Of more than 32 classes the logits are read once more, for log Σ exp.

Importing this module needs Triton; on a CPU its interpreter (``TRITON_INTERPRET=1``) runs the kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsseg.functional.kernels.shared import PI, arctan_step

KINDS = {"hf": 0, "ahf": 1, "mahf": 2}
WIDTH = 32  # classes of a tile, at most
LENGTH = (
    32  # pixels of a tile, one for each thread of a warp, which has all the classes of its own and adds them up alone
)
PIXELS = 1024  # that a program of the forward pass adds up


def sums_of(
    logits: Tensor, target: Tensor, epsilon: float, kind: str, ignore_index: int, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy, energy, ∂energy/∂h (B×2×C) and 1/(valid pixels), all float32.

    Args:
        logits: B×C×H×W; float32, float16 or bfloat16.
        target: B×H×W.
        epsilon: ε.
        kind: Of Heaviside function.
        ignore_index: Label of void pixels.
        mean: Whether the energy is one of each valid pixel, or summed.
    """
    x, labels = logits.flatten(2), target.flatten(1).contiguous()
    images, classes, pixels = x.shape
    width = _width(classes)
    tiles, chunks = triton.cdiv(classes, width), triton.cdiv(pixels, PIXELS)
    columns = 3 * classes + 1
    partial = x.new_empty(images, chunks, columns, dtype=torch.float32)
    total = x.new_empty(images, columns, dtype=torch.float64)
    slope = x.new_empty(images, 2, classes, dtype=torch.float32)
    # Of more classes than a tile holds, log Σ exp is made first; of fewer, together with the sums.
    log_sums = x.new_empty((images, pixels) if tiles > 1 else (0,), dtype=torch.float32)
    cross_entropy, energy, inverse_count = (x.new_empty((), dtype=torch.float32) for _ in range(3))
    tile = {"WIDE": _wide(x), "BC": width, "BP": LENGTH, "num_warps": 1}
    with torch.cuda.device_of(x):
        if tiles > 1:
            _log_sums[triton.cdiv(pixels, LENGTH), images](
                x, labels, log_sums, classes, pixels, *x.stride(), ignore_index, **tile
            )
        _block_sums[chunks, images, tiles](
            x, labels, log_sums, partial, classes, pixels, *x.stride(), ignore_index, epsilon,
            KIND=KINDS[kind], PROGRAM=PIXELS, ONE=tiles == 1, **tile,
        )  # fmt: skip
        _add_up[images, triton.cdiv(columns, 16)](partial, total, chunks, columns, ROWS=64, COLUMNS=16)
        side = triton.next_power_of_2(classes)
        rows = max(1, min(triton.next_power_of_2(images), 2048 // side))
        _energy[(1,)](
            total, cross_entropy, energy, slope, inverse_count, images, classes,
            MEAN=mean, ROWS=rows, COLUMNS=side,
        )  # fmt: skip
    return cross_entropy, energy, slope, inverse_count


def write_gradient(
    logits: Tensor,
    target: Tensor,
    slope: Tensor,
    pixel_weight: Tensor,
    epsilon: float,
    kind: str,
    ignore_index: int,
    out: Tensor,
) -> None:
    """Writes the gradient by the logits into ``out``, whose pixels flatten to a view."""
    x, labels, flat = logits.flatten(2), target.flatten(1).contiguous(), out.flatten(2)
    images, classes, pixels = x.shape
    width = _width(classes)
    with torch.cuda.device_of(x):
        _gradient[triton.cdiv(pixels, LENGTH), images](
            x, labels, slope.contiguous(), pixel_weight, flat, classes, pixels, *x.stride(), *flat.stride(),
            ignore_index, epsilon, KIND=KINDS[kind], BC=width, BP=LENGTH, ONE=classes <= width, WIDE=_wide(x), num_warps=1,
        )  # fmt: skip


def _width(classes: int) -> int:
    """BC."""
    return max(4, min(triton.next_power_of_2(classes), WIDTH))


@triton.jit
def _step(z, epsilon, KIND: tl.constexpr):
    """H_ε(z), accurate where it is small."""
    if KIND == 0:
        return tl.where(z >= 0, 1.0, 0.0)
    elif KIND == 1:
        return arctan_step(z, epsilon)
    else:
        return tl.sigmoid(z * (2 / epsilon))


@triton.jit
def _delta(z, epsilon, KIND: tl.constexpr):
    """δ_ε(z) = H_ε'(z)."""
    if KIND == 0:
        return tl.zeros_like(z)
    elif KIND == 1:
        return epsilon / (PI * (epsilon * epsilon + z * z))
    else:
        step = tl.sigmoid(z * (2 / epsilon))
        return step * (1 - step) * (2 / epsilon)


def _wide(x: Tensor) -> bool:
    """Whether places within an image need 64 bits."""
    return x.shape[1] * x.stride(1) + x.shape[2] * x.stride(2) >= 2**31


# Strides are not specialised: where Triton knows that pixels lie side by side, it gives a thread several of them and
# spreads the classes over threads, which then have to exchange what they add up.
STRIDES = ("by_image", "by_class", "by_pixel")


@triton.jit
def _scores(base, place, start, classes, by_class, valid, BC: tl.constexpr):
    """Logits of BC classes at the program's valid pixels; -∞ elsewhere, whatever stands there."""
    label = start + tl.arange(0, BC)
    there = (label < classes)[:, None] & valid[None, :]
    # Places are 64-bit numbers in large images only: a thread has one for each class.
    return tl.load(
        base + (label.to(place.dtype)[:, None] * by_class + place[None, :]), mask=there, other=-float("inf")
    ).to(tl.float32)


@triton.jit
def _place(pixel, by_pixel, WIDE: tl.constexpr):
    if WIDE:
        return pixel.to(tl.int64) * by_pixel
    else:
        return pixel * by_pixel


@triton.jit
def _labels(target, image, pixel, pixels, ignore):
    """Which pixels are in the image, their labels, and which are valid."""
    inside = pixel < pixels
    label = tl.load(target + image * pixels + pixel, mask=inside, other=ignore).to(tl.int32)
    return inside, label, inside & (label != ignore)


@triton.jit
def _largest_and_sum(base, place, classes, by_class, valid, BC: tl.constexpr, BP: tl.constexpr):
    """Of each valid pixel: the largest logit, and the sum of exp(logit - largest), over tiles of classes."""
    largest = tl.full([BP], -float("inf"), tl.float32)
    total = tl.zeros([BP], tl.float32)
    for start in range(0, classes, BC):
        x = _scores(base, place, start, classes, by_class, valid, BC)
        larger = tl.where(valid, tl.maximum(largest, tl.max(x, 0)), 0.0)
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger[None, :]), 0)
        largest = larger
    return largest, tl.where(valid, total, 1.0)


@triton.jit(do_not_specialize=STRIDES)
def _log_sums(
    logits, target, out, classes, pixels, by_image, by_class, by_pixel, ignore,
    WIDE: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Log Σ exp of every pixel; 0 of void ones."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside, _, valid = _labels(target, image, pixel, pixels, ignore)
    place = _place(pixel, by_pixel, WIDE)
    largest, total = _largest_and_sum(logits + image * by_image, place, classes, by_class, valid, BC, BP)
    tl.store(out + image * pixels + pixel, largest + tl.log(total), mask=inside)


@triton.jit(do_not_specialize=STRIDES)
def _block_sums(
    logits, target, log_sums, partial, classes, pixels, by_image, by_class, by_pixel, ignore, epsilon,
    KIND: tl.constexpr, PROGRAM: tl.constexpr, ONE: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """S, A, T of a tile of classes, and its share in the cross-entropy, over the pixels of a program."""
    image, tile = tl.program_id(1).to(tl.int64), tl.program_id(2)
    base = logits + image * by_image
    mine = tile * BC + tl.arange(0, BC)
    inside_sum = tl.zeros([BC, BP], tl.float32)
    hits = tl.zeros([BC, BP], tl.float32)
    sizes = tl.zeros([BC, BP], tl.float32)
    entropy = tl.zeros([BP], tl.float32)
    for start in range(0, tl.minimum(PROGRAM, pixels - tl.program_id(0) * PROGRAM), BP):
        pixel = tl.program_id(0) * PROGRAM + start + tl.arange(0, BP)
        _, label, valid = _labels(target, image, pixel, pixels, ignore)
        place = _place(pixel, by_pixel, WIDE)
        x = _scores(base, place, tile * BC, classes, by_class, valid, BC)
        if ONE:
            largest = tl.where(valid, tl.max(x, 0), 0.0)  # elsewhere a number that does no harm
            grown = tl.exp(x - largest[None, :])
            total = tl.where(valid, tl.sum(grown, 0), 1.0)
            p = grown * (1 / total)[None, :]
            log_sum = largest + tl.log(total)
        else:
            log_sum = tl.load(log_sums + image * pixels + pixel, mask=valid, other=0.0)
            p = tl.exp(x - log_sum[None, :])
        own = (mine[:, None] == label[None, :]) & valid[None, :]
        h = tl.where(valid[None, :] & (mine < classes)[:, None], _step(p - 0.5, epsilon, KIND), 0.0)
        inside_sum += h
        hits += tl.where(own, h, 0.0)
        sizes += own.to(tl.float32)
        if tile == 0:
            # A label that names no class cannot be refused without waiting for the device: its loss is no number.
            known = valid & (label >= 0) & (label < classes)
            at_label = base + label.to(place.dtype) * by_class + place
            negative_log = log_sum - tl.load(at_label, mask=known, other=0.0).to(tl.float32)
            entropy += tl.where(valid, tl.where(known, negative_log, float("nan")), 0.0)
    out = partial + (image * tl.num_programs(0) + tl.program_id(0)) * (3 * classes + 1)
    there = mine < classes
    tl.store(out + mine, tl.sum(inside_sum, 1), mask=there)
    tl.store(out + classes + mine, tl.sum(hits, 1), mask=there)
    tl.store(out + 2 * classes + mine, tl.sum(sizes, 1), mask=there)
    if tile == 0:
        tl.store(out + 3 * classes, tl.sum(entropy, 0))


@triton.jit
def _add_up(partial, total, blocks, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums over the blocks of an image, in float64."""
    image = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, blocks, ROWS):
        there = (start + row < blocks)[:, None] & (column < width)[None, :]
        place = (image * blocks + start + row)[:, None] * width + column[None, :]
        sums += tl.load(partial + place, mask=there, other=0.0).to(tl.float64)
    tl.store(total + image * width + column, tl.sum(sums, 0), mask=column < width)


@triton.jit
def _energy(
    total, cross_entropy, energy, slope, inverse_count, images, classes,
    MEAN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Cross-entropy, energy, slope and 1/(valid pixels) of the sums; one program."""
    label = tl.arange(0, COLUMNS)
    width = 3 * classes + 1
    energies = tl.zeros([ROWS], tl.float64)
    pixels = tl.zeros([ROWS], tl.float64)
    entropy = tl.zeros([ROWS], tl.float64)
    for start in range(0, images, ROWS):
        image = start + tl.arange(0, ROWS)
        there = (image < images)[:, None] & (label < classes)[None, :]
        place = total + image[:, None] * width + label[None, :]
        inside = tl.load(place, mask=there, other=0.0)
        hits = tl.load(place + classes, mask=there, other=0.0)
        sizes = tl.load(place + 2 * classes, mask=there, other=0.0)
        negative_log = tl.load(total + image * width + 3 * classes, mask=image < images, other=0.0)
        count = tl.sum(sizes, 1)
        outside = count[:, None] - inside
        misses = sizes - hits
        # A region of zero area has zero hits or misses too: any finite mean makes its term 0.
        c1 = tl.minimum(hits / tl.where(inside > 0, inside, 1.0), 1.0)
        c2 = tl.minimum(misses / tl.where(outside > 0, outside, 1.0), 1.0)
        if MEAN:
            scale = 1 / (images * tl.maximum(count, 1.0))
        else:
            scale = 1 / (images * tl.full([ROWS], 1.0, tl.float64))
        scales = tl.where(sizes > 0, scale[:, None], 0.0)
        # Adding 0 times what is no number marks the energy of a wrong label, too.
        energies += tl.sum((hits * (1 - c1) + misses * (1 - c2)) * scales, 1) + 0 * negative_log
        pixels += count
        entropy += negative_log
        out = slope + image[:, None] * (2 * classes) + label[None, :]
        tl.store(out, ((c1 * c1 - c2 * c2) * scales).to(tl.float32), mask=there)
        tl.store(out + classes, (2 * (c2 - c1) * scales).to(tl.float32), mask=there)
    inverse = 1 / tl.maximum(tl.sum(pixels, 0), 1.0)
    tl.store(cross_entropy, (tl.sum(entropy, 0) * inverse).to(tl.float32))
    tl.store(energy, tl.sum(energies, 0).to(tl.float32))
    tl.store(inverse_count, inverse.to(tl.float32))


@triton.jit(do_not_specialize=(*STRIDES, "out_by_image", "out_by_class", "out_by_pixel"))
def _gradient(
    logits, target, slope, pixel_weight, out, classes, pixels, by_image, by_class, by_pixel,
    out_by_image, out_by_class, out_by_pixel, ignore, epsilon,
    KIND: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, ONE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """p (u - Σ p u) with u = δ ∂E/∂h; the cross-entropy adds its weight times p - 1[label]."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside, label, valid = _labels(target, image, pixel, pixels, ignore)
    base, place = logits + image * by_image, _place(pixel, by_pixel, WIDE)
    out += image * out_by_image
    place_out = _place(pixel, out_by_pixel, WIDE)[None, :]
    weight = tl.load(pixel_weight)
    if ONE:
        mine = tl.arange(0, BC)
        x = _scores(base, place, 0, classes, by_class, valid, BC)
        largest = tl.where(valid, tl.max(x, 0), 0.0)
        grown = tl.exp(x - largest[None, :])
        p = grown * (1 / tl.where(valid, tl.sum(grown, 0), 1.0))[None, :]
        own = mine[:, None] == label[None, :]
        by_p = _by_p(p, own, slope, image, mine, classes, epsilon, KIND)
        mean = tl.sum(p * by_p, 0)
        gradient = _by_logits(p, by_p, mean, weight, own, valid)
        there = (mine < classes)[:, None] & inside[None, :]
        tl.store(
            out + (mine.to(place.dtype)[:, None] * out_by_class + place_out),
            gradient.to(out.dtype.element_ty),
            mask=there,
        )
    else:
        largest, total = _largest_and_sum(base, place, classes, by_class, valid, BC, BP)
        log_sum = largest + tl.log(total)
        mean = tl.zeros([BP], tl.float32)
        for start in range(0, classes, BC):
            mine = start + tl.arange(0, BC)
            p = tl.exp(_scores(base, place, start, classes, by_class, valid, BC) - log_sum[None, :])
            by_p = _by_p(p, mine[:, None] == label[None, :], slope, image, mine, classes, epsilon, KIND)
            mean += tl.sum(p * by_p, 0)
        for start in range(0, classes, BC):
            mine = start + tl.arange(0, BC)
            own = mine[:, None] == label[None, :]
            p = tl.exp(_scores(base, place, start, classes, by_class, valid, BC) - log_sum[None, :])
            by_p = _by_p(p, own, slope, image, mine, classes, epsilon, KIND)
            gradient = _by_logits(p, by_p, mean, weight, own, valid)
            there = (mine < classes)[:, None] & inside[None, :]
            place_of = mine.to(place.dtype)[:, None] * out_by_class + place_out
            tl.store(out + place_of, gradient.to(out.dtype.element_ty), mask=there)


@triton.jit
def _by_p(p, own, slope, image, mine, classes, epsilon, KIND: tl.constexpr):
    """u: what the energy changes by with each probability."""
    everywhere = tl.load(slope + image * 2 * classes + mine, mask=mine < classes, other=0.0)
    at_label = tl.load(slope + image * 2 * classes + classes + mine, mask=mine < classes, other=0.0)
    return _delta(p - 0.5, epsilon, KIND) * (everywhere[:, None] + tl.where(own, at_label[:, None], 0.0))


@triton.jit
def _by_logits(p, by_p, mean, weight, own, valid):
    gradient = p * (by_p - (mean - weight)[None, :]) - tl.where(own, weight, 0.0)
    return tl.where(valid[None, :], gradient, 0.0)
