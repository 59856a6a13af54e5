"""Holds the Triton kernels of :mod:`lsseg.functional.multiphase`: a time step of level sets and its gradient.

Legend: B images, C classes, P = H·W pixels. A program works on BP pixels, of one class or of all classes in turn.

The kernels compute the normals and upwind differences of a pixel's neighbours again instead of storing them. A step
reads φ twice and writes it once. Its gradient needs two more planes for each class. As in
:mod:`lsseg.functional.multiphase_step`, ∇φ is kept as twice the derivative.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BP = 256


def step(
    phi: Tensor, speed: Tensor, present: Tensor, epsilon: float, dt: float, eta: float, by_class: bool
) -> tuple[Tensor, Tensor]:
    """Return φ after the step and the sums in A (empty where ε is 0), as in :mod:`lsseg.functional.multiphase_step`."""
    phi, speed, present = phi.contiguous(), speed.contiguous(), present.contiguous().view(torch.uint8)
    images, classes, height, width = phi.shape
    blocks = triton.cdiv(height * width, BP)
    out = torch.empty_like(phi)
    sums = phi.new_empty(images, 3, height, width) if epsilon else phi.new_empty(0)
    with torch.cuda.device_of(phi):
        if epsilon:
            _add_up[blocks, images](phi, present, sums, classes, height, width, eta, BY_CLASS=by_class, BP=BP)
        _advance[blocks, images * classes](
            phi, speed, present, sums, out, classes, height, width, epsilon, dt, eta,
            CURVED=epsilon > 0, BY_CLASS=by_class, BP=BP,
        )  # fmt: skip
    return out, sums


def step_backward(
    by_out: Tensor,
    phi: Tensor,
    speed: Tensor,
    present: Tensor,
    sums: Tensor,
    epsilon: float,
    dt: float,
    eta: float,
    by_class: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients by φ and by the speed."""
    by_out, phi, speed = by_out.contiguous(), phi.contiguous(), speed.contiguous()
    present = present.contiguous().view(torch.uint8)
    images, classes, height, width = phi.shape
    blocks = triton.cdiv(height * width, BP)
    by_phi, by_speed = torch.empty_like(phi), torch.empty_like(phi)
    fields = phi.new_empty(2, *phi.shape) if epsilon else phi.new_empty(0)
    by_sums = torch.empty_like(sums)
    with torch.cuda.device_of(phi):
        if epsilon:
            _by_curvature[blocks, images](
                by_out, phi, present, sums, fields, by_sums, classes, height, width, epsilon, dt, eta,
                BY_CLASS=by_class, BP=BP,
            )  # fmt: skip
        _by_phi[blocks, images * classes](
            by_out, phi, speed, present, fields, by_sums, by_phi, by_speed, classes, height, width, dt, eta,
            CURVED=epsilon > 0, BY_CLASS=by_class, BP=BP,
        )  # fmt: skip
    return by_phi, by_speed


@triton.jit
def _pixels(height, width, BP: tl.constexpr):
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = pixel < height * width
    pixel = tl.minimum(pixel, height * width - 1)
    return pixel // width, pixel % width, inside


@triton.jit
def _gradient(plane, y, x, height, width):
    """Return twice ∇φ, with the edge repeated."""
    row, column = plane + y * width, plane + x
    gx = tl.load(row + tl.minimum(x + 1, width - 1)) - tl.load(row + tl.maximum(x - 1, 0))
    gy = tl.load(column + tl.minimum(y + 1, height - 1) * width) - tl.load(column + tl.maximum(y - 1, 0) * width)
    return gx, gy


@triton.jit
def _normal(plane, y, x, height, width, eta):
    """Return twice |∇φ| (with η) and the unit normal."""
    gx, gy = _gradient(plane, y, x, height, width)
    norm = tl.sqrt(gx * gx + gy * gy + 4 * eta * eta)
    return norm, gx / norm, gy / norm


@triton.jit
def _structure(sums, y, x, classes, height, width, eta, BY_CLASS: tl.constexpr):
    """Return A at a pixel (xx, xy, yy) and the divisor of its sums."""
    place = sums + y * width + x
    a, b, c = tl.load(place), tl.load(place + height * width), tl.load(place + 2 * height * width)
    if BY_CLASS:
        scale = tl.zeros_like(a) + classes
    else:
        scale = a + c + 4 * eta * eta
    return a / scale, b / scale, c / scale, scale


@triton.jit
def _flow_x(plane, sums, y, x, classes, height, width, eta, BY_CLASS: tl.constexpr):
    _, nx, ny = _normal(plane, y, x, height, width, eta)
    a, b, _, _ = _structure(sums, y, x, classes, height, width, eta, BY_CLASS)
    return a * nx + b * ny


@triton.jit
def _flow_y(plane, sums, y, x, classes, height, width, eta, BY_CLASS: tl.constexpr):
    _, nx, ny = _normal(plane, y, x, height, width, eta)
    _, b, c, _ = _structure(sums, y, x, classes, height, width, eta, BY_CLASS)
    return b * nx + c * ny


@triton.jit
def _divergence(plane, sums, y, x, classes, height, width, eta, BY_CLASS: tl.constexpr):
    """Return twice div A n."""
    right, left = tl.minimum(x + 1, width - 1), tl.maximum(x - 1, 0)
    below, above = tl.minimum(y + 1, height - 1), tl.maximum(y - 1, 0)
    total = _flow_x(plane, sums, y, right, classes, height, width, eta, BY_CLASS)
    total -= _flow_x(plane, sums, y, left, classes, height, width, eta, BY_CLASS)
    total += _flow_y(plane, sums, below, x, classes, height, width, eta, BY_CLASS)
    return total - _flow_y(plane, sums, above, x, classes, height, width, eta, BY_CLASS)


@triton.jit
def _sign(force):
    return tl.where(force > 0, 1.0, tl.where(force < 0, -1.0, 0.0))


@triton.jit
def _upwind(plane, y, x, height, width, sign):
    """Return the upwind differences along both axes (≥ 0), and the signed differences ahead of the pixel."""
    value = tl.load(plane + y * width + x)
    row, column = plane + y * width, plane + x
    ahead_x = sign * (tl.load(row + tl.minimum(x + 1, width - 1)) - value)
    behind_x = sign * (tl.load(row + tl.maximum(x - 1, 0)) - value)
    ahead_y = sign * (tl.load(column + tl.minimum(y + 1, height - 1) * width) - value)
    behind_y = sign * (tl.load(column + tl.maximum(y - 1, 0) * width) - value)
    ux = tl.maximum(tl.maximum(ahead_x, behind_x), 0.0)
    uy = tl.maximum(tl.maximum(ahead_y, behind_y), 0.0)
    return ux, uy, ahead_x, ahead_y


@triton.jit
def _add_up(phi, present, sums, classes, height, width, eta, BY_CLASS: tl.constexpr, BP: tl.constexpr):
    """Write the sums over the classes of (2∇φ) (2∇φ)ᵀ, or of n nᵀ."""
    y, x, inside = _pixels(height, width, BP)
    image = tl.program_id(1).to(tl.int64)
    xx, xy, yy = tl.zeros([BP], tl.float32), tl.zeros([BP], tl.float32), tl.zeros([BP], tl.float32)
    for label in range(classes):
        if tl.load(present + image * classes + label) != 0:
            plane = phi + (image * classes + label) * height * width
            vx, vy = _gradient(plane, y, x, height, width)
            if BY_CLASS:
                norm = tl.sqrt(vx * vx + vy * vy + 4 * eta * eta)
                vx, vy = vx / norm, vy / norm
            xx += vx * vx
            xy += vx * vy
            yy += vy * vy
    out = sums + image * 3 * height * width + y * width + x
    tl.store(out, xx, mask=inside)
    tl.store(out + height * width, xy, mask=inside)
    tl.store(out + 2 * height * width, yy, mask=inside)


@triton.jit
def _advance(
    phi, speed, present, sums, out, classes, height, width, epsilon, dt, eta,
    CURVED: tl.constexpr, BY_CLASS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    y, x, inside = _pixels(height, width, BP)
    which = tl.program_id(1).to(tl.int64)
    plane = phi + which * height * width
    place = which * height * width + y * width + x
    value = tl.load(phi + place)
    if tl.load(present + which) != 0:
        force = tl.load(speed + place)
        ux, uy, _, _ = _upwind(plane, y, x, height, width, _sign(force))
        change = force * tl.sqrt(ux * ux + uy * uy)
        if CURVED:
            norm, _, _ = _normal(plane, y, x, height, width, eta)
            own = sums + which // classes * 3 * height * width
            change += epsilon / 4 * norm * _divergence(plane, own, y, x, classes, height, width, eta, BY_CLASS)
        value += dt * change
    tl.store(out + place, value, mask=inside)


@triton.jit
def _by_divergence(by_out, plane, y, x, height, width, factor, eta):
    """Return the gradient by twice the divergence at a pixel."""
    norm, _, _ = _normal(plane, y, x, height, width, eta)
    return tl.load(by_out + y * width + x) * factor * norm


@triton.jit
def _by_flow(by_out, plane, y, x, height, width, factor, eta):
    """Return the gradients by both components of A n, through the adjoint of the central differences."""
    own = _by_divergence(by_out, plane, y, x, height, width, factor, eta)
    left = _by_divergence(by_out, plane, y, tl.maximum(x - 1, 0), height, width, factor, eta)
    right = _by_divergence(by_out, plane, y, tl.minimum(x + 1, width - 1), height, width, factor, eta)
    above = _by_divergence(by_out, plane, tl.maximum(y - 1, 0), x, height, width, factor, eta)
    below = _by_divergence(by_out, plane, tl.minimum(y + 1, height - 1), x, height, width, factor, eta)
    return _adjoint(left, own, right, x, width), _adjoint(above, own, below, y, height)


@triton.jit
def _adjoint(before, own, after, place, size):
    """Return the adjoint of f[i+1] - f[i-1] with the edge repeated."""
    total = tl.where(place >= 1, before, 0.0) - tl.where(place < size - 1, after, 0.0)
    return total + tl.where(place == size - 1, own, 0.0) - tl.where(place == 0, own, 0.0)


@triton.jit
def _through_normal(by_nx, by_ny, norm, nx, ny, by_norm):
    """Return the gradient by twice ∇φ of a function of the unit normal and of twice |∇φ|."""
    by_nx, by_ny = by_nx / norm, by_ny / norm
    along = by_norm - nx * by_nx - ny * by_ny
    return by_nx + nx * along, by_ny + ny * along


@triton.jit
def _by_curvature(
    by_out, phi, present, sums, fields, by_sums, classes, height, width, epsilon, dt, eta,
    BY_CLASS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Write the gradients by twice ∇φ of every class for a fixed A, and the gradients by the sums in A."""
    y, x, inside = _pixels(height, width, BP)
    image = tl.program_id(1).to(tl.int64)
    own = sums + image * 3 * height * width
    a, b, c, scale = _structure(own, y, x, classes, height, width, eta, BY_CLASS)
    by_a, by_b, by_c = tl.zeros([BP], tl.float32), tl.zeros([BP], tl.float32), tl.zeros([BP], tl.float32)
    factor = dt * epsilon / 4
    for label in range(classes):
        which = image * classes + label
        out = fields + which * height * width + y * width + x
        field_x, field_y = tl.zeros([BP], tl.float32), tl.zeros([BP], tl.float32)
        if tl.load(present + which) != 0:
            plane, by = phi + which * height * width, by_out + which * height * width
            norm, nx, ny = _normal(plane, y, x, height, width, eta)
            by_qx, by_qy = _by_flow(by, plane, y, x, height, width, factor, eta)
            by_a += by_qx * nx
            by_b += by_qx * ny + by_qy * nx
            by_c += by_qy * ny
            by_norm = _divergence(plane, own, y, x, classes, height, width, eta, BY_CLASS)
            by_norm *= tl.load(by + y * width + x) * factor
            field_x, field_y = _through_normal(a * by_qx + b * by_qy, b * by_qx + c * by_qy, norm, nx, ny, by_norm)
        tl.store(out, field_x, mask=inside)
        tl.store(out + tl.num_programs(1).to(tl.int64) * classes * height * width, field_y, mask=inside)
    # A is sums / scale. Unless BY_CLASS makes the scale a constant, it is the trace of the sums plus 4η².
    by_a, by_b, by_c = by_a / scale, by_b / scale, by_c / scale
    if not BY_CLASS:
        trace = by_a * a + by_b * b + by_c * c
        by_a -= trace
        by_c -= trace
    out = by_sums + image * 3 * height * width + y * width + x
    tl.store(out, by_a, mask=inside)
    tl.store(out + height * width, by_b, mask=inside)
    tl.store(out + 2 * height * width, by_c, mask=inside)


@triton.jit
def _field(fields, by_sums, plane, which, planes, y, x, height, width, eta, BY_CLASS: tl.constexpr):
    """Return the gradient by twice ∇φ at a pixel, including the part through A."""
    place = which * height * width + y * width + x
    field_x, field_y = tl.load(fields + place), tl.load(fields + planes * height * width + place)
    at = by_sums + y * width + x
    by_a, by_b, by_c = tl.load(at), tl.load(at + height * width), tl.load(at + 2 * height * width)
    vx, vy = _gradient(plane, y, x, height, width)
    if BY_CLASS:
        norm = tl.sqrt(vx * vx + vy * vy + 4 * eta * eta)
        nx, ny = vx / norm, vy / norm
        more_x, more_y = _through_normal(2 * by_a * nx + by_b * ny, by_b * nx + 2 * by_c * ny, norm, nx, ny, 0.0)
    else:
        more_x, more_y = 2 * by_a * vx + by_b * vy, by_b * vx + 2 * by_c * vy
    return field_x + more_x, field_y + more_y


@triton.jit
def _by_upwind(by_out, speed, plane, y, x, height, width, dt):
    """Return the gradients by the neighbour that is upwind along x and y, whether it lies ahead, and the norm."""
    place = y * width + x
    force = tl.load(speed + place)
    ux, uy, ahead_x, ahead_y = _upwind(plane, y, x, height, width, _sign(force))
    # At a norm of 0 both components are 0, and the gradient is defined as 0 there. The bound is so large that the
    # quotient stays finite even when a gradient scaler enlarges the gradient.
    norm = tl.sqrt(ux * ux + uy * uy)
    share = tl.load(by_out + place) * dt * tl.abs(force) / tl.maximum(norm, 1e-12)
    return share * ux, share * uy, ahead_x == ux, ahead_y == uy, norm


@triton.jit
def _by_phi(
    by_out, phi, speed, present, fields, by_sums, by_phi, by_speed, classes, height, width, dt, eta,
    CURVED: tl.constexpr, BY_CLASS: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    y, x, inside = _pixels(height, width, BP)
    which = tl.program_id(1).to(tl.int64)
    at = which * height * width
    plane, by, force = phi + at, by_out + at, speed + at
    place = y * width + x
    gradient = tl.load(by + place)
    by_force = tl.zeros([BP], tl.float32)
    if tl.load(present + which) != 0:
        right, left = tl.minimum(x + 1, width - 1), tl.maximum(x - 1, 0)
        below, above = tl.minimum(y + 1, height - 1), tl.maximum(y - 1, 0)
        own_x, own_y, _, _, norm = _by_upwind(by, force, plane, y, x, height, width, dt)
        by_force = norm * gradient * dt
        gradient -= own_x + own_y
        # Each neighbour contributes its gradient by this pixel, if this pixel is upwind of it.
        owed, _, ahead, _, _ = _by_upwind(by, force, plane, y, left, height, width, dt)
        gradient += tl.where((x >= 1) & ahead, owed, 0.0)
        owed, _, ahead, _, _ = _by_upwind(by, force, plane, y, right, height, width, dt)
        gradient += tl.where((x < width - 1) & (ahead == 0), owed, 0.0)
        _, owed, _, ahead, _ = _by_upwind(by, force, plane, above, x, height, width, dt)
        gradient += tl.where((y >= 1) & ahead, owed, 0.0)
        _, owed, _, ahead, _ = _by_upwind(by, force, plane, below, x, height, width, dt)
        gradient += tl.where((y < height - 1) & (ahead == 0), owed, 0.0)
        if CURVED:
            planes = tl.num_programs(1).to(tl.int64)
            sums = by_sums + which // classes * 3 * height * width
            own_x, own_y = _field(fields, sums, plane, which, planes, y, x, height, width, eta, BY_CLASS)
            before, _ = _field(fields, sums, plane, which, planes, y, left, height, width, eta, BY_CLASS)
            after, _ = _field(fields, sums, plane, which, planes, y, right, height, width, eta, BY_CLASS)
            gradient += _adjoint(before, own_x, after, x, width)
            _, before = _field(fields, sums, plane, which, planes, above, x, height, width, eta, BY_CLASS)
            _, after = _field(fields, sums, plane, which, planes, below, x, height, width, eta, BY_CLASS)
            gradient += _adjoint(before, own_y, after, y, height)
    tl.store(by_phi + at + place, gradient, mask=inside)
    tl.store(by_speed + at + place, by_force, mask=inside)
