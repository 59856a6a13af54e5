"""Triton kernels of the competition of the classes and its gradient (:mod:`lsseg.functional.competition`).

A program works on BP pixels of one image, class after class.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BP = 256


def competition(log_f: Tensor, log_rho: float, limit: float, log_range: float) -> Tensor:
    """F of every class, B×C×H×W."""
    log_f = log_f.contiguous()
    (images, classes), pixels = log_f.shape[:2], log_f.shape[2] * log_f.shape[3]
    out = torch.empty_like(log_f)
    with torch.cuda.device_of(log_f):
        _compete[triton.cdiv(pixels, BP), images](log_f, out, classes, pixels, log_rho, limit, log_range, BP=BP)
    return out


def competition_backward(by_speed: Tensor, log_f: Tensor, log_rho: float, limit: float, log_range: float) -> Tensor:
    """Gradient by log f, B×C×H×W."""
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
    """The largest and the second largest of the classes, after infinities have been cut off."""
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
        # Of equals each has the other as its rival, and then the second is the first.
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
    # What the rivals owe, unless it is ρ that they are measured against.
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
