"""Holds the Triton kernels of :mod:`lsseg.functional.level_set_labels`: the energy and its gradient (Kim 2019).

Legend: B images, C classes, P = H·W pixels. A program works on BP pixels of one image, BC classes at a time.

In the forward pass each program reads its logits once. It writes the sums S, A, T of every class and the cross-entropy
of its pixels, B×blocks×(3C + 1). A second kernel adds up the blocks in float64, and a third one computes energy and
slope from the sums. In the backward pass one kernel reads the logits once and writes the gradient. No kernel adds
atomically, so that a given shape has one order of summation and one result. If there are more classes than a tile
holds, the kernels read the logits again, but from the cache.

Importing this module needs Triton. On a CPU Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsseg.functional.kernels.shared import PI, arctan_step

KINDS = {"hf": 0, "ahf": 1, "mahf": 2}
ELEMENTS = 4096  # elements of a tile, 32 for each of 128 threads
TILE_CLASSES = 128  # most classes of a tile


def sums_of(
    logits: Tensor, target: Tensor, epsilon: float, kind: str, ignore_index: int, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the cross-entropy, the energies (B×C), ∂energy/∂h (B×2×C) and 1/(valid pixels), all in float32.

    Args:
        logits: B×C×spatial; float32, float16 or bfloat16.
        target: B×spatial.
        epsilon: ε.
        kind: Name of the Heaviside function.
        ignore_index: Label of void pixels.
        mean: Whether energies are divided by the number of valid pixels.
    """
    x, labels = logits.flatten(2), target.flatten(1).contiguous()
    images, classes, pixels = x.shape
    width, length = _tile(classes)
    blocks = triton.cdiv(pixels, length)
    partial = x.new_empty(images, blocks, 3 * classes + 1, dtype=torch.float32)
    total = x.new_empty(images, 3 * classes + 1, dtype=torch.float64)
    slope = x.new_empty(images, 2, classes, dtype=torch.float32)
    energies = x.new_empty(images, classes, dtype=torch.float32)
    cross_entropy, inverse_count = (x.new_empty((), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _block_sums[blocks, images](
            x, labels, partial, classes, pixels, *x.stride(), ignore_index, epsilon,
            KIND=KINDS[kind], BC=width, BP=length, ONE=classes <= width, num_warps=4,
        )  # fmt: skip
        _add_up[images, triton.cdiv(3 * classes + 1, 16)](partial, total, blocks, 3 * classes + 1, ROWS=128, COLUMNS=16)
        columns = triton.next_power_of_2(classes)
        rows = max(1, min(triton.next_power_of_2(images), 2048 // columns))
        _energy[(1,)](
            total, cross_entropy, energies, slope, inverse_count, images, classes, MEAN=mean, ROWS=rows, COLUMNS=columns
        )
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
    width, length = _tile(classes)
    with torch.cuda.device_of(x):
        _gradient[triton.cdiv(pixels, length), images](
            x, labels, slope.contiguous(), pixel_weight, flat, classes, pixels, *x.stride(), *flat.stride(),
            ignore_index, epsilon, KIND=KINDS[kind], BC=width, BP=length, ONE=classes <= width, num_warps=4,
        )  # fmt: skip


def _tile(classes: int) -> tuple[int, int]:
    """Return BC and BP."""
    width = max(2, min(triton.next_power_of_2(classes), TILE_CLASSES))
    return width, min(512, ELEMENTS // width)


@triton.jit
def _step(z, epsilon, KIND: tl.constexpr):
    """Return H_ε(z), which is accurate where it is small, too."""
    if KIND == 0:
        return tl.where(z >= 0, 1.0, 0.0)
    elif KIND == 1:
        return arctan_step(z, epsilon)
    else:
        return tl.sigmoid(z * (2 / epsilon))


@triton.jit
def _delta(z, epsilon, KIND: tl.constexpr):
    """Return δ_ε(z) = H_ε'(z)."""
    if KIND == 0:
        return tl.zeros_like(z)
    elif KIND == 1:
        return epsilon / (PI * (epsilon * epsilon + z * z))
    else:
        step = tl.sigmoid(z * (2 / epsilon))
        return step * (1 - step) * (2 / epsilon)


@triton.jit
def _scores(base, place, start, classes, by_class, valid, BC: tl.constexpr):
    """Load the logits of BC classes at the program's valid pixels; all other values become -∞, even NaN."""
    label = start + tl.arange(0, BC)
    there = (label < classes)[:, None] & valid[None, :]
    return tl.load(base + label.to(tl.int64)[:, None] * by_class + place[None, :], mask=there, other=-float("inf")).to(
        tl.float32
    )


@triton.jit
def _pixels(target, pixels, ignore, BP: tl.constexpr):
    """Return the program's image and pixels, which pixels are in the image, their labels, and which are valid."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < pixels
    label = tl.load(target + image * pixels + pixel, mask=inside, other=ignore).to(tl.int32)
    return image, pixel.to(tl.int64), inside, label, inside & (label != ignore)


@triton.jit
def _largest_and_sum(
    first, base, place, classes, by_class, valid, BC: tl.constexpr, BP: tl.constexpr, ONE: tl.constexpr
):
    """Find for each valid pixel the largest logit, and the sum of exp(logit - largest)."""
    if ONE:
        largest = tl.where(valid, tl.max(first, 0), 0.0)  # A finite number elsewhere avoids NaN.
        total = tl.sum(tl.exp(first - largest[None, :]), 0)
    else:
        largest = tl.full([BP], -float("inf"), tl.float32)
        total = tl.zeros([BP], tl.float32)
        for start in range(0, classes, BC):
            x = _scores(base, place, start, classes, by_class, valid, BC)
            larger = tl.where(valid, tl.maximum(largest, tl.max(x, 0)), 0.0)
            total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger[None, :]), 0)
            largest = larger
    return largest, tl.where(valid, total, 1.0)


@triton.jit
def _block_sums(
    logits, target, partial, classes, pixels, by_image, by_class, by_pixel, ignore, epsilon,
    KIND: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Write S, A and T of every class and the cross-entropy, summed over the pixels of a program."""
    image, pixel, _, label, valid = _pixels(target, pixels, ignore, BP)
    place = pixel * by_pixel
    base = logits + image * by_image
    first = _scores(base, place, 0, classes, by_class, valid, BC)
    largest, total = _largest_and_sum(first, base, place, classes, by_class, valid, BC, BP, ONE)
    out = partial + (image * tl.num_programs(0) + tl.program_id(0)) * (3 * classes + 1)
    at_label = tl.zeros([BP], tl.float32)
    inverse = 1 / total
    for start in range(0, classes, BC):
        x = first if ONE else _scores(base, place, start, classes, by_class, valid, BC)
        mine = start + tl.arange(0, BC)
        own = (mine[:, None] == label[None, :]) & valid[None, :]
        at_label += tl.sum(tl.where(own, x, 0.0), 0)
        p = tl.exp(x - largest[None, :]) * inverse[None, :]
        h = tl.where(valid[None, :], _step(p - 0.5, epsilon, KIND), 0.0)
        there = mine < classes
        tl.store(out + mine, tl.sum(h, 1), mask=there)
        tl.store(out + classes + mine, tl.sum(tl.where(own, h, 0.0), 1), mask=there)
        tl.store(out + 2 * classes + mine, tl.sum(own.to(tl.float32), 1), mask=there)
    negative_log = largest + tl.log(total) - at_label
    # An error for a label that names no class would have to wait for the device, so the loss becomes NaN instead.
    known = (label >= 0) & (label < classes)
    negative_log = tl.where(known, negative_log, float("nan"))
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
    MEAN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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
        if MEAN:
            scale = 1 / tl.maximum(count, 1.0)
        else:
            scale = tl.full([ROWS], 1.0, tl.float64)
        scales = tl.where(sizes > 0, scale[:, None], 0.0)
        # Adding 0 times NaN makes the energies of an image with a wrong label NaN, too.
        energy = (hits * (1 - c1) + misses * (1 - c2)) * scales + 0 * negative_log[:, None]
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
    KIND: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Write P (u - Σ P u) with u = δ ∂E/∂h, plus the weight of the cross-entropy times P - 1[label]."""
    image, pixel, inside, label, valid = _pixels(target, pixels, ignore, BP)
    place = pixel * by_pixel
    base = logits + image * by_image
    first = _scores(base, place, 0, classes, by_class, valid, BC)
    largest, total = _largest_and_sum(first, base, place, classes, by_class, valid, BC, BP, ONE)
    inverse = 1 / total
    weight = tl.load(pixel_weight)
    mean = tl.zeros([BP], tl.float32)
    for start in range(0, classes, BC):
        x = first if ONE else _scores(base, place, start, classes, by_class, valid, BC)
        p = tl.exp(x - largest[None, :]) * inverse[None, :]
        mean += tl.sum(p * _by_p(p, slope, image, start, label, classes, epsilon, KIND, BC), 0)
    place_out = out + image * out_by_image + (pixel * out_by_pixel)[None, :]
    for start in range(0, classes, BC):
        x = first if ONE else _scores(base, place, start, classes, by_class, valid, BC)
        mine = start + tl.arange(0, BC)
        own = mine[:, None] == label[None, :]
        p = tl.exp(x - largest[None, :]) * inverse[None, :]
        by_p = _by_p(p, slope, image, start, label, classes, epsilon, KIND, BC)
        gradient = p * (by_p - (mean - weight)[None, :]) - tl.where(own, weight, 0.0)
        gradient = tl.where(valid[None, :], gradient, 0.0)
        there = (mine < classes)[:, None] & inside[None, :]
        tl.store(place_out + mine.to(tl.int64)[:, None] * out_by_class, gradient.to(out.dtype.element_ty), mask=there)


@triton.jit
def _by_p(p, slope, image, start, label, classes, epsilon, KIND: tl.constexpr, BC: tl.constexpr):
    """Return u, the derivative of the energy by each probability."""
    mine = start + tl.arange(0, BC)
    everywhere = tl.load(slope + image * 2 * classes + mine, mask=mine < classes, other=0.0)
    at_label = tl.load(slope + image * 2 * classes + classes + mine, mask=mine < classes, other=0.0)
    own = mine[:, None] == label[None, :]
    return _delta(p - 0.5, epsilon, KIND) * (everywhere[:, None] + tl.where(own, at_label[:, None], 0.0))
