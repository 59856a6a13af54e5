"""Holds the Triton kernels of :mod:`lsseg.functional.level_set_labels`: the energy and its gradient (Kim 2019).

Legend: B images, C classes, P = H·W pixels. A program works on BP pixels of one image, BC classes at a time.

In the forward pass each program writes the sums S, A, T of every class and the cross-entropy of its pixels,
B×blocks×(3C + 1). A second kernel adds up the blocks in float64, and a third one computes energy and slope from the
sums. In the backward pass one kernel reads the logits and writes the gradient. No kernel adds atomically, so that a
given shape has one order of summation and one result.

A kernel goes over the classes two or three times. Only the first time reads the logits from memory, since a program's
logits then stay in the cache. A program is one warp, so that its threads need no barrier.

Importing this module needs Triton. On a CPU Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsseg.functional.kernels.shared import LOG2E, PI, arctan_step, exp2, inverse

KINDS = {"hf": 0, "ahf": 1, "mahf": 2, "ramp": 3}
SCALINGS = {"sum": 0, "mean": 1, "balanced": 2, "log": 3}


def sums_of(
    logits: Tensor, target: Tensor, epsilon: float, kind: str, ignore_index: int, scaling: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the cross-entropy, the energies (B×C), ∂energy/∂h (B×2×C) and 1/(valid pixels), all in float32.

    Args:
        logits: B×C×spatial; float32, float16 or bfloat16.
        target: B×spatial.
        epsilon: ε.
        kind: Name of the Heaviside function.
        ignore_index: Label of void pixels.
        scaling: See :func:`~lsseg.functional.level_set_labels.scaled`.
    """
    x, labels = logits.flatten(2), target.flatten(1).contiguous()
    images, classes, pixels = x.shape
    size = tile(classes, 128)
    blocks = triton.cdiv(pixels, size["BP"])
    partial = x.new_empty(images, blocks, 3 * classes + 1, dtype=torch.float32)
    total = x.new_empty(images, 3 * classes + 1, dtype=torch.float64)
    slope = x.new_empty(images, 2, classes, dtype=torch.float32)
    energies = x.new_empty(images, classes, dtype=torch.float32)
    cross_entropy, inverse_count = (x.new_empty((), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _block_sums[blocks, images](
            x, labels, partial, classes, pixels, *x.stride(), ignore_index, epsilon,
            KIND=KINDS[kind], **size,
        )  # fmt: skip
        _add_up[images, triton.cdiv(3 * classes + 1, 16)](partial, total, blocks, 3 * classes + 1, ROWS=128, COLUMNS=16)
        columns = triton.next_power_of_2(classes)
        rows = max(1, min(triton.next_power_of_2(images), 2048 // columns))
        _energy[(1,)](
            total, cross_entropy, energies, slope, inverse_count, images, classes,
            SCALING=SCALINGS[scaling], ROWS=rows, COLUMNS=columns,
        )  # fmt: skip
    return cross_entropy, energies, slope, inverse_count


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
    """Write the gradient by the logits into ``out``, whose pixel axes must flatten to a view."""
    x, labels, flat = logits.flatten(2), target.flatten(1).contiguous(), out.flatten(2)
    images, classes, pixels = x.shape
    size = tile(classes, 256 // x.element_size())  # the fastest on an H200
    with torch.cuda.device_of(x):
        _gradient[triton.cdiv(pixels, size["BP"]), images](
            x, labels, slope.contiguous(), pixel_weight, flat, classes, pixels, *x.stride(), *flat.stride(),
            ignore_index, epsilon, KIND=KINDS[kind], **size,
        )  # fmt: skip


def tile(classes: int, pixels: int) -> dict[str, int]:
    """Return the numbers of classes and pixels that a program works on at a time, and its number of warps."""
    return {"BC": 4 if classes > 2 else 2, "BP": pixels, "num_warps": 1}


@triton.jit
def _step(z, epsilon, KIND: tl.constexpr):
    """Return H_ε(z), which is accurate where it is small, too."""
    if KIND == 0:
        return tl.where(z >= 0, 1.0, 0.0)
    elif KIND == 1:
        return arctan_step(z, epsilon)
    elif KIND == 3:
        return tl.minimum(tl.maximum((z + epsilon) * (0.5 / epsilon), 0.0), 1.0)
    else:
        return inverse(1 + exp2(z * (-2 * LOG2E / epsilon)))


@triton.jit
def _delta(z, epsilon, KIND: tl.constexpr):
    """Return δ_ε(z) = H_ε'(z)."""
    if KIND == 0:
        return tl.zeros_like(z)
    elif KIND == 1:
        return inverse(epsilon * epsilon + z * z, epsilon / PI)
    elif KIND == 3:
        return tl.where(tl.abs(z) <= epsilon, 0.5 / epsilon, 0.0)
    else:
        step = inverse(1 + exp2(z * (-2 * LOG2E / epsilon)))
        return step * (1 - step) * (2 / epsilon)


@triton.jit
def _scores(base, place, start, classes, by_class, inside, BC: tl.constexpr):
    """Load the logits of BC classes at the program's pixels; past the last class it is loaded again.

    The mask must not ask which pixels are valid, since one that differs between neighbours forbids loads of 16 bytes.
    A value for what the mask leaves out would cost an instruction for every logit.
    """
    label = tl.minimum(start + tl.arange(0, BC), classes - 1).to(tl.int64)
    return tl.load(base + label[:, None] * by_class + place[None, :], mask=inside[None, :]).to(tl.float32)


@triton.jit
def _power(x, largest):
    """Return exp(x - largest), where ``largest`` comes times log2(e), so that one instruction serves both."""
    return exp2(x * LOG2E - largest[None, :])


@triton.jit
def _pixels(target, pixels, ignore, BP: tl.constexpr):
    """Return the program's image and pixels, which pixels are in the image, their labels, and which are valid."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < pixels
    label = tl.load(target + image * pixels + pixel, mask=inside, other=ignore).to(tl.int32)
    return image, pixel.to(tl.int64), inside, label, inside & (label != ignore)


@triton.jit
def _largest_and_sum(base, place, classes, by_class, inside, BC: tl.constexpr, BP: tl.constexpr):
    """Find for each pixel the largest logit, times log2(e), and the sum of exp(logit - largest).

    Void pixels may give anything.
    """
    largest = tl.full([BP], -3e38, tl.float32)  # It is finite, since classes may have the logit -∞.
    total = tl.zeros([BP], tl.float32)
    for start in range(0, classes, BC):
        x = _scores(base, place, start, classes, by_class, inside, BC)
        larger = tl.maximum(largest, tl.max(x, 0) * LOG2E)
        part = tl.where((start + tl.arange(0, BC) < classes)[:, None], _power(x, larger), 0.0)
        total = total * exp2(largest - larger) + tl.sum(part, 0)
        largest = larger
    return largest, tl.where(inside, total, 1.0)


@triton.jit
def _block_sums(
    logits, target, partial, classes, pixels, by_image, by_class, by_pixel, ignore, epsilon,
    KIND: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write S, A and T of every class and the cross-entropy, summed over the pixels of a program."""
    image, pixel, inside, label, valid = _pixels(target, pixels, ignore, BP)
    place = pixel * by_pixel
    base = logits + image * by_image
    largest, total = _largest_and_sum(base, place, classes, by_class, inside, BC, BP)
    out = partial + (image * tl.num_programs(0) + tl.program_id(0)) * (3 * classes + 1)
    share = 1 / total
    counted = tl.where(valid, label, -1)
    for start in range(0, classes, BC):
        x = _scores(base, place, start, classes, by_class, inside, BC)
        mine = start + tl.arange(0, BC)
        own = mine[:, None] == counted[None, :]
        h = tl.where(valid[None, :], _step(_power(x, largest) * share[None, :] - 0.5, epsilon, KIND), 0.0)
        there = mine < classes
        tl.store(out + mine, tl.sum(h, 1), mask=there)
        tl.store(out + classes + mine, tl.sum(tl.where(own, h, 0.0), 1), mask=there)
        tl.store(out + 2 * classes + mine, tl.sum(tl.where(own, 1.0, 0.0), 1), mask=there)
    # An error for a label that names no class would have to wait for the device, so the loss becomes NaN instead.
    known = valid & (label >= 0) & (label < classes)
    at_label = tl.load(base + label.to(tl.int64) * by_class + place, mask=known, other=0.0).to(tl.float32)
    negative_log = tl.where(known, (largest + tl.log2(total) - at_label * LOG2E) / LOG2E, float("nan"))
    tl.store(out + 3 * classes, tl.sum(tl.where(valid, negative_log, 0.0), 0))


@triton.jit
def _add_up(partial, total, blocks, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add up the blocks of an image in float64."""
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
    total, cross_entropy, energies, slope, inverse_count, images, classes,
    SCALING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the cross-entropy, energies, slope and 1/(valid pixels) from the sums, in one program."""
    label = tl.arange(0, COLUMNS)
    width = 3 * classes + 1
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
        present = sizes > 0
        known = tl.maximum(tl.sum(tl.where(present, 1.0, 0.0), 1), 1.0)[:, None]  # number of the image's classes
        size = tl.where(present, sizes, 1.0)
        energy = hits * (1 - c1) + misses * (1 - c2)
        if SCALING == 3:
            explained = tl.where(present, sizes - energy, 1.0)
            scales = 1 / (explained * known)
            energy = tl.maximum(tl.log(size / explained), 0.0) / known
        elif SCALING == 2:
            scales = 1 / (size * known)
            energy *= scales
        elif SCALING == 1:
            scales = tl.zeros_like(size) + 1 / tl.maximum(count, 1.0)[:, None]
            energy *= scales
        else:
            scales = tl.zeros_like(size) + 1.0
        scales = tl.where(present, scales, 0.0)
        # Adding 0 times NaN makes the energies of an image with a wrong label NaN, too.
        energy = tl.where(present, energy, 0.0) + 0 * negative_log[:, None]
        tl.store(energies + image[:, None] * classes + label[None, :], energy.to(tl.float32), mask=there)
        pixels += count
        entropy += negative_log
        out = slope + image[:, None] * (2 * classes) + label[None, :]
        tl.store(out, ((c1 * c1 - c2 * c2) * scales).to(tl.float32), mask=there)
        tl.store(out + classes, (2 * (c2 - c1) * scales).to(tl.float32), mask=there)
    inverse = 1 / tl.maximum(tl.sum(pixels, 0), 1.0)
    tl.store(cross_entropy, (tl.sum(entropy, 0) * inverse).to(tl.float32))
    tl.store(inverse_count, inverse.to(tl.float32))


@triton.jit
def _gradient(
    logits, target, slope, pixel_weight, out, classes, pixels, by_image, by_class, by_pixel,
    out_by_image, out_by_class, out_by_pixel, ignore, epsilon,
    KIND: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write P (u - Σ P u) with u = δ ∂E/∂h, plus the weight of the cross-entropy times P - 1[label]."""
    image, pixel, inside, label, valid = _pixels(target, pixels, ignore, BP)
    place = pixel * by_pixel
    base = logits + image * by_image
    largest, total = _largest_and_sum(base, place, classes, by_class, inside, BC, BP)
    share = 1 / total
    weight = tl.load(pixel_weight)
    mean = tl.zeros([BP], tl.float32)
    for start in range(0, classes, BC):
        x = _scores(base, place, start, classes, by_class, inside, BC)
        p = _power(x, largest) * share[None, :]
        mean += tl.sum(p * _by_p(p, slope, image, start, label, classes, epsilon, KIND, BC), 0)
    mean -= weight
    place_out = out + image * out_by_image + (pixel * out_by_pixel)[None, :]
    for start in range(0, classes, BC):
        x = _scores(base, place, start, classes, by_class, inside, BC)
        mine = start + tl.arange(0, BC)
        own = mine[:, None] == label[None, :]
        p = _power(x, largest) * share[None, :]
        by_p = _by_p(p, slope, image, start, label, classes, epsilon, KIND, BC)
        gradient = p * (by_p - mean[None, :]) - tl.where(own, weight, 0.0)
        gradient = tl.where(valid[None, :], gradient, 0.0)
        there = (mine < classes)[:, None] & inside[None, :]
        tl.store(place_out + mine.to(tl.int64)[:, None] * out_by_class, gradient.to(out.dtype.element_ty), mask=there)


@triton.jit
def _by_p(p, slope, image, start, label, classes, epsilon, KIND: tl.constexpr, BC: tl.constexpr):
    """Return u, the derivative of the energy by each probability; 0 past the last class."""
    mine = start + tl.arange(0, BC)
    everywhere = tl.load(slope + image * 2 * classes + mine, mask=mine < classes, other=0.0)
    at_label = everywhere + tl.load(slope + image * 2 * classes + classes + mine, mask=mine < classes, other=0.0)
    factor = tl.where(mine[:, None] == label[None, :], at_label[:, None], everywhere[:, None])
    return _delta(p - 0.5, epsilon, KIND) * factor
