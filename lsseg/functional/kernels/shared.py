"""Holds the Triton functions that kernels share: the step function, and curvature by Sobel filters with its adjoint.

The results are those of :mod:`lsseg.functional.heaviside` and :mod:`lsseg.functional.curvature`. The filters repeat the
edge. A plane is contiguous, H×W. ``y`` and ``x`` are the pixels of a program.
"""

import math

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from lsseg.functional.kernels import INTERPRETED

PI: tl.constexpr = tl.constexpr(math.pi)
LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
FAST: tl.constexpr = tl.constexpr(torch.version.cuda is not None and not INTERPRETED)


@triton.jit
def exp2(x):
    """Return 2 to the x. On NVIDIA's cards it takes one instruction, because results below 1e-38 become 0."""
    if FAST:
        return libdevice.exp2(x)
    else:
        return tl.exp2(x)


@triton.jit
def inverse(x, numerator=1.0):
    """Return numerator/x to 1e-7, of 1e-38 < x < 1e38."""
    if FAST:
        return libdevice.fast_dividef(numerator, x)
    else:
        return numerator / x


@triton.jit
def arctan(t):
    """Return atan(t) for t in [0, 1] to 1e-7, as t times a polynomial of t² (least squares at Chebyshev's nodes)."""
    square = t * t
    value = -0.00466877331 * square + 0.02416618953
    value = value * square - 0.0593671008
    value = value * square + 0.09906096897
    value = value * square - 0.1401658504
    value = value * square + 0.1996923539
    value = value * square - 0.3333195972
    return t * (value * square + 0.9999998978)


@triton.jit
def arctan_step(z, epsilon):
    """Return ½ (1 + 2/π · atan(z/ε)), which is accurate where it is small, too."""
    size = tl.abs(z)
    near = size < epsilon
    angle = arctan(inverse(tl.maximum(size, epsilon), tl.minimum(size, epsilon))) * (1 / PI)
    below = tl.where(near, 0.5 - angle, angle)  # H(-|z|)
    return tl.where(z < 0, below, 1 - below)


@triton.jit
def _clamped(plane, y, x, height, width):
    y = tl.minimum(tl.maximum(y, 0), height - 1)
    x = tl.minimum(tl.maximum(x, 0), width - 1)
    return tl.load(plane + y * width + x)


@triton.jit
def normal(plane, y, x, height, width, eta):
    """Return |∇φ| and the unit normal at a pixel, or at the nearest pixel of the image."""
    y = tl.minimum(tl.maximum(y, 0), height - 1)
    x = tl.minimum(tl.maximum(x, 0), width - 1)
    gx = tl.zeros(y.shape, tl.float32)
    gy = tl.zeros(y.shape, tl.float32)
    for i in tl.static_range(9):
        if i != 4:
            value = _clamped(plane, y + (i // 3 - 1), x + (i % 3 - 1), height, width)
            gx += (i % 3 - 1) * (2 - (i // 3 - 1) * (i // 3 - 1)) / 8 * value
            gy += (i // 3 - 1) * (2 - (i % 3 - 1) * (i % 3 - 1)) / 8 * value
    norm = tl.sqrt(gx * gx + gy * gy + eta * eta)
    return norm, gx / norm, gy / norm


@triton.jit
def curvature(plane, y, x, height, width, eta):
    """Return div(∇φ/|∇φ|)."""
    bend = tl.zeros(y.shape, tl.float32)
    for i in tl.static_range(9):
        if i != 4:
            _, nx, ny = normal(plane, y + (i // 3 - 1), x + (i % 3 - 1), height, width, eta)
            bend += (i % 3 - 1) * (2 - (i // 3 - 1) * (i // 3 - 1)) / 8 * nx
            bend += (i // 3 - 1) * (2 - (i % 3 - 1) * (i % 3 - 1)) / 8 * ny
    return bend


@triton.jit
def _smooth(place, size, step: tl.constexpr):
    """Return the weight of the pixel ``step`` ahead in (1, 2, 1)/4 with the edge repeated, which is its own adjoint."""
    if step == 0:
        return 0.5 + 0.25 * (place == 0).to(tl.float32) + 0.25 * (place == size - 1).to(tl.float32)
    else:
        return tl.full(place.shape, 0.25, tl.float32)


@triton.jit
def _difference(place, size, step: tl.constexpr):
    """Return the weight of the pixel ``step`` ahead in the adjoint of (-1, 0, 1)/2 with the edge repeated."""
    if step == 0:
        return 0.5 * (place == size - 1).to(tl.float32) - 0.5 * (place == 0).to(tl.float32)
    else:
        return tl.full(place.shape, -0.5 * step, tl.float32)


@triton.jit
def sobel_adjoint(plane, y, x, height, width, inside):
    """Return the adjoints of both Sobel filters, applied to one plane, at the pixels."""
    by_x = tl.zeros(y.shape, tl.float32)
    by_y = tl.zeros(y.shape, tl.float32)
    for i in tl.static_range(9):
        row, column = y + (i // 3 - 1), x + (i % 3 - 1)
        there = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        value = tl.load(plane + row * width + column, mask=there, other=0.0)
        by_x += _smooth(y, height, i // 3 - 1) * _difference(x, width, i % 3 - 1) * value
        by_y += _difference(y, height, i // 3 - 1) * _smooth(x, width, i % 3 - 1) * value
    return by_x, by_y


@triton.jit
def pixels_of(pixels, BP: tl.constexpr):
    """Return the program's group and pixels, and which pixels are in the image."""
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    return tl.program_id(1).to(tl.int64), pixel, pixel < pixels


@triton.jit
def tile_of(features, centre, group, pixel, inside, depth, pixels, BD: tl.constexpr):
    """Return the features less their centre, with 0 outside the image."""
    feature = tl.arange(0, BD)
    there = (feature < depth)[:, None] & inside[None, :]
    place = (group * depth + feature.to(tl.int64))[:, None] * pixels + pixel[None, :]
    middle = tl.load(centre + group * depth + feature, mask=feature < depth, other=0.0)
    return tl.where(there, tl.load(features + place, mask=there, other=0.0) - middle[:, None], 0.0)


@triton.jit
def vector(start, depth, BD: tl.constexpr):
    """Load the numbers of all features from ``start``, with 0 after the last feature."""
    feature = tl.arange(0, BD)
    return tl.load(start + feature, mask=feature < depth, other=0.0)


@triton.jit
def delta_of(phi, epsilon, PRINTED: tl.constexpr):
    """Return δ_ε(φ) and ε² + φ²."""
    reach = epsilon * epsilon + phi * phi
    if PRINTED:
        return epsilon * epsilon / (PI * reach), reach
    else:
        return epsilon / (PI * reach), reach
