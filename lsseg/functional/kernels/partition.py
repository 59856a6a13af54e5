"""Holds Triton kernels of the classes' competition (:mod:`lsseg.functional.partition`) and of signed distances.

A program of the competition works on BP pixels of one image, class after class. The square of a distance
(:mod:`lsseg.functional.distance`) is a minimum over columns of a minimum over rows. It is exact, because it is computed
in integers. One plane of row distances serves both sides of a mask, because a pixel's distance to its own side is 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BP = 256


def competition(log_f: Tensor, log_rho: float, limit: float, log_range: float) -> Tensor:
    """Return F of every class, B×C×H×W."""
    log_f = log_f.contiguous()
    (images, classes), pixels = log_f.shape[:2], log_f.shape[2] * log_f.shape[3]
    out = torch.empty_like(log_f)
    with torch.cuda.device_of(log_f):
        _compete[triton.cdiv(pixels, BP), images](log_f, out, classes, pixels, log_rho, limit, log_range, BP=BP)
    return out


def competition_backward(by_speed: Tensor, log_f: Tensor, log_rho: float, limit: float, log_range: float) -> Tensor:
    """Return the gradient by log f, B×C×H×W."""
    by_speed, log_f = by_speed.contiguous(), log_f.contiguous()
    (images, classes), pixels = log_f.shape[:2], log_f.shape[2] * log_f.shape[3]
    out = torch.empty_like(log_f)
    with torch.cuda.device_of(log_f):
        _compete_backward[triton.cdiv(pixels, BP), images](
            by_speed, log_f, out, classes, pixels, log_rho, limit, log_range, BP=BP
        )
    return out


@triton.jit
def _two_largest(log_f, base, inside, classes, pixels, log_range, BP: tl.constexpr):
    """Return the largest and the second largest value of the classes, all clipped to ± ``log_range``."""
    first = tl.full([BP], -float("inf"), tl.float32)
    second = tl.full([BP], -float("inf"), tl.float32)
    for label in range(classes):
        value = tl.load(log_f + base + label * pixels, mask=inside, other=0.0)
        value = tl.minimum(tl.maximum(value, -log_range), log_range)
        second = tl.maximum(second, tl.minimum(first, value))
        first = tl.maximum(first, value)
    return first, second


@triton.jit
def _place(classes, pixels, BP: tl.constexpr):
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    return tl.program_id(1).to(tl.int64) * classes * pixels + pixel, pixel < pixels


@triton.jit
def _compete(log_f, out, classes, pixels, log_rho, limit, log_range, BP: tl.constexpr):
    base, inside = _place(classes, pixels, BP)
    first, second = _two_largest(log_f, base, inside, classes, pixels, log_range, BP)
    for label in range(classes):
        value = tl.load(log_f + base + label * pixels, mask=inside, other=0.0)
        value = tl.minimum(tl.maximum(value, -log_range), log_range)
        # Of two equally large classes each has the other as its rival, because ``second`` then equals ``first``.
        rival = tl.maximum(tl.where(value == first, second, first), log_rho)
        speed = tl.minimum(tl.maximum(value - rival, -limit), limit)
        tl.store(out + base + label * pixels, speed, mask=inside)


@triton.jit
def _compete_backward(by_speed, log_f, out, classes, pixels, log_rho, limit, log_range, BP: tl.constexpr):
    base, inside = _place(classes, pixels, BP)
    first, second = _two_largest(log_f, base, inside, classes, pixels, log_range, BP)
    to_first = tl.zeros([BP], tl.float32)
    to_second = tl.zeros([BP], tl.float32)
    for label in range(classes):
        value = tl.load(log_f + base + label * pixels, mask=inside, other=0.0)
        won = value == first
        rival = tl.maximum(tl.where(won, second, first), log_rho)
        gradient = tl.load(by_speed + base + label * pixels, mask=inside, other=0.0)
        gradient = tl.where(tl.abs(rival - value) <= limit, gradient, 0.0)
        to_second -= tl.where(won, gradient, 0.0)
        to_first -= tl.where(won, 0.0, gradient)
    # The rivals receive these gradients only where they exceed ρ, because otherwise ρ takes their place.
    to_first = tl.where(first > log_rho, to_first, 0.0)
    to_second = tl.where((second > log_rho) & (second < first), to_second, 0.0)
    for label in range(classes):
        value = tl.load(log_f + base + label * pixels, mask=inside, other=0.0)
        won = value == first
        rival = tl.maximum(tl.where(won, second, first), log_rho)
        gradient = tl.load(by_speed + base + label * pixels, mask=inside, other=0.0)
        gradient = tl.where(tl.abs(rival - value) <= limit, gradient, 0.0)
        gradient += tl.where(won, to_first, 0.0) + tl.where(value == second, to_second, 0.0)
        tl.store(out + base + label * pixels, gradient, mask=inside)


def signed_distance(mask: Tensor, limit: float, reach: int) -> Tensor:
    """Map M×H×W bool to M×H×W float32 distances, exact up to ``reach`` pixels and clipped to ± ``limit``."""
    planes, height, width = mask.shape
    kinds = mask.contiguous().view(torch.uint8)
    squared = mask.new_empty(mask.shape, dtype=torch.int32)
    out = mask.new_empty(mask.shape, dtype=torch.float32)
    grid = (triton.cdiv(height * width, BP), planes)
    far = (reach + 1) ** 2
    with torch.cuda.device_of(mask):
        _along_rows[grid](kinds, squared, height, width, min(reach, width - 1), far, BP=BP)
        _along_columns[grid](kinds, squared, out, height, width, min(reach, height - 1), far, limit, BP=BP)
    return out


@triton.jit
def _along_rows(kinds, squared, height, width, reach, far, BP: tl.constexpr):
    """Write the squared distance to the nearest pixel of the other side in the row, or ``far`` if none is in reach."""
    plane = tl.program_id(1).to(tl.int64) * height * width
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < height * width
    x = pixel % width
    own = tl.load(kinds + plane + pixel, mask=inside, other=0)
    best = tl.zeros([BP], tl.int32) + far
    for step in range(1, reach + 1):
        before = tl.load(kinds + plane + pixel - step, mask=inside & (x >= step), other=0)
        after = tl.load(kinds + plane + pixel + step, mask=inside & (x + step < width), other=0)
        found = ((x >= step) & (before != own)) | ((x + step < width) & (after != own))
        best = tl.minimum(best, tl.where(found, step * step, far))
    tl.store(squared + plane + pixel, best, mask=inside)


@triton.jit
def _along_columns(kinds, squared, out, height, width, reach, far, limit, BP: tl.constexpr):
    """Write the signed distance, a minimum over the nearest pixels of the other side in all rows in reach."""
    plane = tl.program_id(1).to(tl.int64) * height * width
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < height * width
    y = pixel // width
    own = tl.load(kinds + plane + pixel, mask=inside, other=0)
    best = tl.load(squared + plane + pixel, mask=inside, other=0)
    for step in range(1, reach + 1):
        for sign in tl.static_range(-1, 2, 2):
            there = inside & (y + sign * step >= 0) & (y + sign * step < height)
            place = plane + pixel + sign * step * width
            kind = tl.load(kinds + place, mask=there, other=0)
            row = tl.where(kind != own, 0, tl.load(squared + place, mask=there, other=0))
            best = tl.minimum(best, tl.where(there, row + step * step, far))
    distance = tl.sqrt(best.to(tl.float32)) - 0.5
    signed = tl.where(own != 0, distance, -distance)
    tl.store(out + plane + pixel, tl.minimum(tl.maximum(signed, -limit), limit), mask=inside)
