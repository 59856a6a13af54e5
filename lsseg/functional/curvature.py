"""Computes curvature by Sobel filters (Homayounfar 2020, section 4.1, eq. 8) and finite differences along an axis.

Tensors are …×H×W with any leading axes, and the edge is repeated. Filters are normalised by 1/8, so that a ramp of
slope 1 has the gradient 1. Differences d = φ[x+1] - φ[x] lie between the pixels, so there is one fewer of them.
"""

from torch import Tensor

X, Y = -1, -2


def curvature(phi: Tensor, eta: float = 0.03) -> Tensor:
    """Return the curvature of a level-set function's contours at every pixel, div(∇φ/|∇φ|).

    |∇φ| is √(φ_x² + φ_y² + η²), so a flat φ has no direction and no curvature. Gradients of a normalised, truncated
    distance are about 1/14, and η = 0.03 shortens their normals by 8 %. A smaller η makes the gradients of an
    evolution explode at the edge of the truncation.

    Args:
        phi: …×H×W, floating; positive inside, so that a convex region has a negative curvature.
        eta: η > 0, in units of φ per pixel.

    Returns:
        …×H×W, differentiable.

    Raises:
        ValueError: If ``phi`` is not floating or has no pixel, or ``eta`` is not positive.

    >>> import torch
    >>> x = torch.arange(-9.0, 10.0)
    >>> curvature(-torch.hypot(x, x[:, None]))[9, 14]  # a cone at radius 5: nearly -1 / 5
    tensor(-0.2055)
    """
    if not phi.is_floating_point() or phi.dim() < 2 or 0 in phi.shape[-2:]:
        raise ValueError(f"phi must be floating, …×H×W, not {phi.dtype} {tuple(phi.shape)}")
    if not eta > 0:
        raise ValueError(f"eta must be positive, not {eta}")
    _, nx, ny = _normals(phi, eta)
    return _sobel(nx, X) + _sobel(ny, Y)


def curvature_adjoint(gradient: Tensor, phi: Tensor, eta: float) -> Tensor:
    """Return the gradient by φ of a function, given its gradient by :func:`curvature`."""
    norm, nx, ny = _normals(phi, eta)
    by_nx, by_ny = _sobel_adjoint(gradient, X).div_(norm), _sobel_adjoint(gradient, Y).div_(norm)
    along = (nx * by_nx).addcmul_(ny, by_ny)
    by_nx.addcmul_(nx, along, value=-1)
    by_ny.addcmul_(ny, along, value=-1)
    return _sobel_adjoint(by_nx, X).add_(_sobel_adjoint(by_ny, Y))


def _normals(phi: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return |∇φ| (with η) and the unit normal."""
    gx, gy = _sobel(phi, X), _sobel(phi, Y)
    norm = (gx * gx).addcmul_(gy, gy).add_(eta**2).sqrt()
    return norm, gx / norm, gy / norm


def _sobel(phi: Tensor, dim: int) -> Tensor:
    return _smoothed(spread(phi.diff(dim=dim), dim) / 2, X + Y - dim)


def _sobel_adjoint(g: Tensor, dim: int) -> Tensor:
    return difference_adjoint(spread_adjoint(_smoothed(g / 2, X + Y - dim), dim), dim)


def _smoothed(phi: Tensor, dim: int) -> Tensor:
    """Smooth by (1, 2, 1) / 4 along an axis, as φ - DᵀD φ / 4 with the differences D. It is self-adjoint."""
    out = phi.clone()
    add_difference_adjoint(out, phi.diff(dim=dim), dim, -0.25)
    return out


def spread(d: Tensor, dim: int) -> Tensor:
    """Return twice the central differences at the pixels, given the differences between them."""
    size = d.shape[dim]
    out = _empty_pixels(d, dim)
    out.narrow(dim, 0, size).copy_(d)
    out.narrow(dim, size, 1).zero_()
    out.narrow(dim, 1, size).add_(d)
    return out


def spread_adjoint(g: Tensor, dim: int) -> Tensor:
    """Apply the adjoint of :func:`spread`, from the pixels to the differences between them."""
    size = g.shape[dim] - 1
    return g.narrow(dim, 0, size) + g.narrow(dim, 1, size)


def difference_adjoint(g: Tensor, dim: int) -> Tensor:
    """Apply the adjoint of the differences, from the places between the pixels to the pixels."""
    size = g.shape[dim]
    out = _empty_pixels(g, dim)
    out.narrow(dim, 1, size).copy_(g)
    out.narrow(dim, 0, 1).zero_()
    out.narrow(dim, 0, size).sub_(g)
    return out


def add_difference_adjoint(out: Tensor, g: Tensor, dim: int, factor: float = 1.0) -> None:
    """Add ``factor`` times :func:`difference_adjoint` of ``g`` to ``out``."""
    size = g.shape[dim]
    out.narrow(dim, 1, size).add_(g, alpha=factor)
    out.narrow(dim, 0, size).sub_(g, alpha=factor)


def _empty_pixels(d: Tensor, dim: int) -> Tensor:
    shape = list(d.shape)
    shape[dim] += 1
    return d.new_empty(shape)
