"""Finite differences along an axis, the edge repeated, and their adjoints.

Differences d = φ[x+1] - φ[x] lie between the pixels: there is one less of them. Any shape in front of the axis.
"""

from torch import Tensor


def spread(d: Tensor, dim: int) -> Tensor:
    """Twice the central differences at the pixels from the differences between them."""
    size = d.shape[dim]
    out = _empty_pixels(d, dim)
    out.narrow(dim, 0, size).copy_(d)
    out.narrow(dim, size, 1).zero_()
    out.narrow(dim, 1, size).add_(d)
    return out


def spread_adjoint(g: Tensor, dim: int) -> Tensor:
    """From pixels to the differences between them."""
    size = g.shape[dim] - 1
    return g.narrow(dim, 0, size) + g.narrow(dim, 1, size)


def difference_adjoint(g: Tensor, dim: int) -> Tensor:
    """From the differences to the pixels."""
    size = g.shape[dim]
    out = _empty_pixels(g, dim)
    out.narrow(dim, 1, size).copy_(g)
    out.narrow(dim, 0, 1).zero_()
    out.narrow(dim, 0, size).sub_(g)
    return out


def add_difference_adjoint(out: Tensor, g: Tensor, dim: int, factor: float = 1.0) -> None:
    """Add ``factor`` times :func:`difference_adjoint`."""
    size = g.shape[dim]
    out.narrow(dim, 1, size).add_(g, alpha=factor)
    out.narrow(dim, 0, size).sub_(g, alpha=factor)


def _empty_pixels(d: Tensor, dim: int) -> Tensor:
    shape = list(d.shape)
    shape[dim] += 1
    return d.new_empty(shape)
