"""Holds the Triton kernels of :mod:`lsseg.functional.chan_vese`: the evolution and its gradient (Homayounfar 2020).

Legend: G groups of K objects that share D features, N iterations, P = H·W pixels. A program works on BP pixels of one
group. It keeps all of their features in registers (BD ≥ D of them) and handles one object after the other. Where no
features are needed, a program works on PLANE pixels of one object.

An iteration reads the features twice: for the sums of both sides, and for the step. The backward pass also reads them
twice for each iteration, and once more for the gradient by the features, which is written once. The kernels subtract a
centre near the mean from the features. What all features of a group have in common changes no result, but its squares
would hide the rest in rounding errors. Sums over pixels are in float32 within a program and in float64 over programs.
Their order is fixed.

Importing this module needs Triton. On a CPU Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsseg.functional.kernels.shared import (
    PI,
    arctan_step,
    curvature,
    delta_of,
    normal,
    pixels_of,
    sobel_adjoint,
    tile_of,
    vector,
)

ELEMENTS = 8192  # elements of a tile of features
PLANE = 256
MORE = 4  # further sums: of w, w ‖F‖², w κ and g δ · force, where w is the gradient by the force


def evolve(
    phi: Tensor, features: Tensor, numbers: Tensor, printed: bool, eta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run all iterations; see :func:`lsseg.functional.chan_vese_operator.evolve`."""
    (groups, objects, height, width), depth = phi.shape, features.shape[1]
    steps, pixels = (numbers.shape[2] - 3) // 2, height * width
    before = phi.new_empty(steps, groups, objects, pixels)
    out, bend = phi.new_empty(phi.shape), phi.new_empty(groups, objects, pixels)
    means = phi.new_empty(steps, groups, 2 * objects, depth)
    sizes = phi.new_empty(steps, groups, 2 * objects, 1)
    features, numbers, centre = features.contiguous(), numbers.contiguous(), _centre(features)
    tile = _tile(depth)
    chunks = triton.cdiv(pixels, tile["BP"])
    partial = phi.new_empty(groups, chunks, 2 * objects, depth + 1)
    planes = (triton.cdiv(pixels, PLANE), groups * objects)
    before[0] = phi.flatten(2)
    shape = (objects, depth, pixels, steps)
    with torch.cuda.device_of(phi):
        for step in range(steps):
            now, after = before[step], before[step + 1] if step + 1 < steps else out
            _bend[planes](now, bend, pixels, height, width, eta, BP=PLANE)
            _draw[chunks, groups](now, features, centre, numbers, partial, step, *shape, **tile)
            _means[2 * objects, groups](partial, means[step], sizes[step], chunks, depth, ROWS=16, BD=tile["BD"])
            _advance[chunks, groups](
                now, features, centre, numbers, means[step], bend, after, step, *shape, PRINTED=printed, **tile
            )
    return out, before, means, sizes


def _centre(features: Tensor) -> Tensor:
    """Return the mean of every fourth row of the features of each group, G×D."""
    return features[:, :, ::4].mean((2, 3))


def evolve_backward(
    by_out: Tensor,
    features: Tensor,
    numbers: Tensor,
    before: Tensor,
    means: Tensor,
    sizes: Tensor,
    printed: bool,
    eta: float,
    by_features: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients by φ and the numbers, and write that by the features unless ``by_features`` is empty."""
    (groups, objects, height, width), depth = by_out.shape, features.shape[1]
    steps, pixels = len(before), height * width
    features, numbers, centre = features.contiguous(), numbers.contiguous(), _centre(features)
    tile = _tile(depth)
    chunks = triton.cdiv(pixels, tile["BP"])
    planes = (triton.cdiv(pixels, PLANE), groups * objects)
    by_phi = by_out.clone(memory_format=torch.contiguous_format)
    by_force, through = torch.empty_like(before), before.new_empty(steps, groups, objects, 2 * depth + 1)
    sides = before.new_empty(steps, 2, *before.shape[1:])
    force, bend, by_side = (before.new_empty(before.shape[1:]) for _ in range(3))
    by_normal = before.new_empty(2, *before.shape[1:])
    partial = before.new_empty(groups, chunks, objects, depth + MORE)
    by_epsilon = before.new_empty(steps, groups, objects, planes[0])
    by_numbers = torch.zeros_like(numbers)
    shape = (objects, depth, pixels, steps)
    with torch.cuda.device_of(by_out):
        for step in reversed(range(steps)):
            phi = before[step]
            _bend[planes](phi, bend, pixels, height, width, eta, BP=PLANE)
            _by_force[chunks, groups](
                by_phi, phi, features, centre, numbers, means[step], bend, by_force[step], force, partial,
                step, *shape, PRINTED=printed, **tile,
            )  # fmt: skip
            _through_means[objects, groups](
                partial, numbers, means[step], sizes[step], through[step], by_numbers,
                step, chunks, objects, depth, steps, ROWS=16, BD=tile["BD"],
            )  # fmt: skip
            _by_side[chunks, groups](features, centre, through[step], by_side, objects, depth, pixels, **tile)
            _by_normal[planes](
                by_force[step], phi, numbers, by_normal, sides[step], step, pixels, steps, height, width, eta, BP=PLANE
            )
            _by_phi[planes](
                by_phi, phi, numbers, force, by_side, by_normal, by_epsilon[step], step, pixels, steps, height, width,
                PRINTED=printed, BP=PLANE,
            )  # fmt: skip
        if by_features.numel():
            _by_features[chunks, groups](
                features, centre, numbers, means, by_force, sides, through, by_features, *shape, **tile
            )
    by_numbers[:, :, 3 : 3 + steps] = by_epsilon.sum(3, dtype=torch.float64).movedim(0, 2)
    return by_phi, by_numbers


def _tile(depth: int) -> dict[str, int]:
    wide = max(2, triton.next_power_of_2(depth))
    return {"BD": wide, "BP": max(16, min(128, ELEMENTS // wide)), "num_warps": 4}


@triton.jit
def _bend(phi, out, pixels, height, width, eta, BP: tl.constexpr):
    """Write the curvature of every object."""
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    plane = tl.program_id(1).to(tl.int64) * pixels
    bend = curvature(phi + plane, pixel // width, pixel % width, height, width, eta)
    tl.store(out + plane + pixel, bend, mask=pixel < pixels)


@triton.jit
def _draw(
    phi, features, centre, numbers, partial, step, objects, depth, pixels, steps,
    BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write Σ H F and Σ H over the program's pixels, and the same sums of 1 - H."""
    group, pixel, inside = pixels_of(pixels, BP)
    tile = tile_of(features, centre, group, pixel, inside, depth, pixels, BD)
    feature = tl.arange(0, BD)
    out = partial + (group * tl.num_programs(0) + tl.program_id(0)) * 2 * objects * (depth + 1)
    for k in range(objects):
        row = group * objects + k
        epsilon = tl.load(numbers + row * (3 + 2 * steps) + 3 + step)
        x = tl.load(phi + row * pixels + pixel, mask=inside, other=0.0)
        within = tl.where(inside, arctan_step(x, epsilon), 0.0)
        without = tl.where(inside, arctan_step(-x, epsilon), 0.0)
        one, other = out + k * (depth + 1), out + (objects + k) * (depth + 1)
        tl.store(one + feature, tl.sum(tile * within[None, :], 1), mask=feature < depth)
        tl.store(one + depth, tl.sum(within, 0))
        tl.store(other + feature, tl.sum(tile * without[None, :], 1), mask=feature < depth)
        tl.store(other + depth, tl.sum(without, 0))


@triton.jit
def _means(partial, means, sizes, chunks, depth, ROWS: tl.constexpr, BD: tl.constexpr):
    """Write the mean features and the size of one side of an object."""
    side, sides, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    feature = tl.arange(0, BD)
    sums = tl.zeros([ROWS, BD], tl.float64)
    counts = tl.zeros([ROWS], tl.float64)
    for start in range(0, chunks, ROWS):
        chunk = start + tl.arange(0, ROWS)
        place = ((group * chunks + chunk) * sides + side) * (depth + 1)
        there = (chunk < chunks)[:, None] & (feature < depth)[None, :]
        sums += tl.load(partial + place[:, None] + feature[None, :], mask=there, other=0.0).to(tl.float64)
        counts += tl.load(partial + place + depth, mask=chunk < chunks, other=0.0).to(tl.float64)
    size = tl.sum(counts, 0)
    row = group * sides + side
    tl.store(means + row * depth + feature, (tl.sum(sums, 0) / size).to(tl.float32), mask=feature < depth)
    tl.store(sizes + row, size.to(tl.float32))


@triton.jit
def _force(tile, energy, numbers, means, row, side, other, depth, BD: tl.constexpr):
    """Return λ2 ‖F - c2‖² - λ1 ‖F - c1‖² at the program's pixels."""
    lambda1, lambda2 = tl.load(numbers + row), tl.load(numbers + row + 1)
    inside, outside = vector(means + side * depth, depth, BD), vector(means + other * depth, depth, BD)
    constant = lambda2 * tl.sum(outside * outside, 0) - lambda1 * tl.sum(inside * inside, 0)
    along = 2 * (lambda1 * inside - lambda2 * outside)
    return tl.sum(tile * along[:, None], 0) + constant + (lambda2 - lambda1) * energy


@triton.jit
def _advance(
    phi, features, centre, numbers, means, bend, out, step, objects, depth, pixels, steps,
    PRINTED: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Run one iteration with the given means."""
    group, pixel, inside = pixels_of(pixels, BP)
    tile = tile_of(features, centre, group, pixel, inside, depth, pixels, BD)
    energy = tl.sum(tile * tile, 0)
    for k in range(objects):
        row = group * objects + k
        number = row * (3 + 2 * steps)
        force = _force(
            tile, energy, numbers, means, number, row + group * objects, row + (group + 1) * objects, depth, BD
        )
        place = row * pixels + pixel
        force += tl.load(numbers + number + 2) * tl.load(bend + place, mask=inside, other=0.0)
        value = tl.load(phi + place, mask=inside, other=0.0)
        delta, _ = delta_of(value, tl.load(numbers + number + 3 + step), PRINTED)
        dt = tl.load(numbers + number + 3 + steps + step)
        tl.store(out + place, value + force * delta * dt, mask=inside)


@triton.jit
def _by_force(
    by_phi, phi, features, centre, numbers, means, bend, by_force, force_out, partial, step, objects, depth, pixels,
    steps, PRINTED: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write the gradient by the force, the force itself, and sums over the program's pixels."""
    group, pixel, inside = pixels_of(pixels, BP)
    tile = tile_of(features, centre, group, pixel, inside, depth, pixels, BD)
    energy = tl.sum(tile * tile, 0)
    feature = tl.arange(0, BD)
    for k in range(objects):
        row = group * objects + k
        number = row * (3 + 2 * steps)
        force = _force(
            tile, energy, numbers, means, number, row + group * objects, row + (group + 1) * objects, depth, BD
        )
        place = row * pixels + pixel
        bent = tl.load(bend + place, mask=inside, other=0.0)
        force += tl.load(numbers + number + 2) * bent
        value = tl.load(phi + place, mask=inside, other=0.0)
        g = tl.load(by_phi + place, mask=inside, other=0.0)
        delta, _ = delta_of(value, tl.load(numbers + number + 3 + step), PRINTED)
        by = g * delta * tl.load(numbers + number + 3 + steps + step)
        tl.store(by_force + place, by, mask=inside)
        tl.store(force_out + place, force, mask=inside)
        out = partial + ((group * tl.num_programs(0) + tl.program_id(0)) * objects + k) * (depth + 4)
        tl.store(out + feature, tl.sum(tile * by[None, :], 1), mask=feature < depth)
        tl.store(out + depth, tl.sum(by, 0))
        tl.store(out + depth + 1, tl.sum(by * energy, 0))
        tl.store(out + depth + 2, tl.sum(by * bent, 0))
        tl.store(out + depth + 3, tl.sum(g * delta * force, 0))


@triton.jit
def _column(partial, place, there):
    return tl.sum(tl.load(partial + place, mask=there, other=0.0).to(tl.float64), 0)


@triton.jit
def _through_means(
    partial, numbers, means, sizes, through, by_numbers, step, chunks, objects, depth, steps,
    ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write the gradients by both means over their sizes, the constant for ``_by_side``, and those by the numbers."""
    k, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    feature = tl.arange(0, BD)
    sums = tl.zeros([ROWS, BD], tl.float64)
    zero = tl.sum(tl.zeros([ROWS], tl.float64), 0)
    total, energy, by_mu, by_dt = zero, zero, zero, zero
    for start in range(0, chunks, ROWS):
        chunk = start + tl.arange(0, ROWS)
        place = ((group * chunks + chunk) * objects + k) * (depth + 4)
        known = chunk < chunks
        there = known[:, None] & (feature < depth)[None, :]
        sums += tl.load(partial + place[:, None] + feature[None, :], mask=there, other=0.0).to(tl.float64)
        total += _column(partial, place + depth, known)
        energy += _column(partial, place + depth + 1, known)
        by_mu += _column(partial, place + depth + 2, known)
        by_dt += _column(partial, place + depth + 3, known)
    drawn = tl.sum(sums, 0)
    row = group * objects + k
    side, other = row + group * objects, row + (group + 1) * objects
    number = row * (3 + 2 * steps)
    lambda1, lambda2 = tl.load(numbers + number), tl.load(numbers + number + 1)
    inside = vector(means + side * depth, depth, BD).to(tl.float64)
    outside = vector(means + other * depth, depth, BD).to(tl.float64)
    # ± Σ w ‖F - c‖²
    by_lambda1 = -(energy - 2 * tl.sum(inside * drawn, 0) + total * tl.sum(inside * inside, 0))
    by_lambda2 = energy - 2 * tl.sum(outside * drawn, 0) + total * tl.sum(outside * outside, 0)
    by_inside = 2 * lambda1 * (drawn - total * inside) / tl.load(sizes + side)
    by_outside = -2 * lambda2 * (drawn - total * outside) / tl.load(sizes + other)
    constant = tl.sum(by_outside * outside - by_inside * inside, 0)
    out = through + row * (2 * depth + 1)
    tl.store(out + feature, by_inside.to(tl.float32), mask=feature < depth)
    tl.store(out + depth + feature, by_outside.to(tl.float32), mask=feature < depth)
    tl.store(out + 2 * depth, constant.to(tl.float32))
    by = by_numbers + number
    tl.store(by, tl.load(by) + by_lambda1.to(tl.float32))
    tl.store(by + 1, tl.load(by + 1) + by_lambda2.to(tl.float32))
    tl.store(by + 2, tl.load(by + 2) + by_mu.to(tl.float32))
    tl.store(by + 3 + steps + step, by_dt.to(tl.float32))


@triton.jit
def _by_side(features, centre, through, by_side, objects, depth, pixels, BD: tl.constexpr, BP: tl.constexpr):
    """Write the gradient by H less that by 1 - H."""
    group, pixel, inside = pixels_of(pixels, BP)
    tile = tile_of(features, centre, group, pixel, inside, depth, pixels, BD)
    for k in range(objects):
        row = group * objects + k
        vectors = through + row * (2 * depth + 1)
        by_mean = vector(vectors, depth, BD) - vector(vectors + depth, depth, BD)
        by = tl.sum(tile * by_mean[:, None], 0) + tl.load(vectors + 2 * depth)
        tl.store(by_side + row * pixels + pixel, by, mask=inside)


@triton.jit
def _by_normal(
    by_force, phi, numbers, by_normal, sides, step, pixels, steps, height, width, eta, BP: tl.constexpr
):  # fmt: skip
    """Write the gradients by ∇φ through the curvature's second filters, and H and 1 - H for ``_by_features``."""
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < pixels
    row = tl.program_id(1).to(tl.int64)
    planes = tl.num_programs(1).to(tl.int64) * pixels
    place = row * pixels + pixel
    y, x = pixel // width, pixel % width
    mu = tl.load(numbers + row * (3 + 2 * steps) + 2)
    norm, nx, ny = normal(phi + row * pixels, y, x, height, width, eta)
    by_nx, by_ny = sobel_adjoint(by_force + row * pixels, y, x, height, width, inside)
    by_nx, by_ny = by_nx * mu / norm, by_ny * mu / norm
    along = nx * by_nx + ny * by_ny
    tl.store(by_normal + place, by_nx - nx * along, mask=inside)
    tl.store(by_normal + planes + place, by_ny - ny * along, mask=inside)
    epsilon = tl.load(numbers + row * (3 + 2 * steps) + 3 + step)
    value = tl.load(phi + place, mask=inside, other=0.0)
    tl.store(sides + place, arctan_step(value, epsilon), mask=inside)
    tl.store(sides + planes + place, arctan_step(-value, epsilon), mask=inside)


@triton.jit
def _by_phi(
    by_phi, phi, numbers, force, by_side, by_normal, by_epsilon, step, pixels, steps, height, width,
    PRINTED: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Turn the gradient by φ after the iteration into that by φ before it, and write the sums for ε."""
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < pixels
    row = tl.program_id(1).to(tl.int64)
    planes = tl.num_programs(1).to(tl.int64) * pixels
    place = row * pixels + pixel
    y, x = pixel // width, pixel % width
    epsilon = tl.load(numbers + row * (3 + 2 * steps) + 3 + step)
    dt = tl.load(numbers + row * (3 + 2 * steps) + 3 + steps + step)
    g = tl.load(by_phi + place, mask=inside, other=0.0)
    value = tl.load(phi + place, mask=inside, other=0.0)
    by_delta = g * tl.load(force + place, mask=inside, other=0.0) * dt
    delta, reach = delta_of(value, epsilon, PRINTED)
    # H' = ε / π(ε² + φ²) and ∂H/∂ε = -φ / π(ε² + φ²); the outside is one minus the inside.
    by_step = tl.load(by_side + place, mask=inside, other=0.0) / (PI * reach)
    if PRINTED:
        change = 2 * epsilon * value * value
    else:
        change = value * value - epsilon * epsilon
    by = by_delta * change / (PI * reach * reach) - by_step * value
    tl.store(by_epsilon + row * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.where(inside, by, 0.0), 0))
    # ∂δ/∂φ = -2φ δ / (ε² + φ²)
    new = g + by_step * epsilon - 2 * by_delta * delta / reach * value
    bent, _ = sobel_adjoint(by_normal + row * pixels, y, x, height, width, inside)
    _, turned = sobel_adjoint(by_normal + planes + row * pixels, y, x, height, width, inside)
    tl.store(by_phi + place, new + bent + turned, mask=inside)


@triton.jit
def _by_features(
    features, centre, numbers, means, by_force, sides, through, out, objects, depth, pixels, steps,
    BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write the gradient by the features, summed over all iterations."""
    group, pixel, inside = pixels_of(pixels, BP)
    every = tl.num_programs(1).to(tl.int64) * objects
    feature = tl.arange(0, BD)
    total = tl.zeros([BD, BP], tl.float32)
    along = tl.zeros([BP], tl.float32)
    for step in range(steps):
        for k in range(objects):
            row = group * objects + k
            number = row * (3 + 2 * steps)
            lambda1, lambda2 = tl.load(numbers + number), tl.load(numbers + number + 1)
            at = step * every + row
            side = 2 * step * every + row + group * objects
            inner = vector(means + side * depth, depth, BD)
            outer = vector(means + (side + objects) * depth, depth, BD)
            by = tl.load(by_force + at * pixels + pixel, mask=inside, other=0.0)
            within = tl.load(sides + (2 * step * every + row) * pixels + pixel, mask=inside, other=0.0)
            without = tl.load(sides + ((2 * step + 1) * every + row) * pixels + pixel, mask=inside, other=0.0)
            vectors = through + at * (2 * depth + 1)
            total += (2 * (lambda1 * inner - lambda2 * outer))[:, None] * by[None, :]
            total += vector(vectors, depth, BD)[:, None] * within[None, :]
            total += vector(vectors + depth, depth, BD)[:, None] * without[None, :]
            along += 2 * (lambda2 - lambda1) * by
    total += along[None, :] * tile_of(features, centre, group, pixel, inside, depth, pixels, BD)
    place = (group * depth + feature.to(tl.int64))[:, None] * pixels + pixel[None, :]
    tl.store(out + place, total, mask=(feature < depth)[:, None] & inside[None, :])
