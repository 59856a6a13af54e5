"""Interpolates features from a grid that is coarser than the level-set function's, without enlarging them.

Legend: b groups, K planes, D features, P = H·W pixels, h·w cells of s×s pixels.

Bilinear interpolation is linear, F = U f. So a product of F with a vector is the enlarged product of f with it, and a
sum of w F over pixels is a sum of (Uᵀ w) f over cells. Planes are enlarged and gathered, instead of features. ‖F‖² is
no such product, but at a pixel it is a quadratic form of four cells. It needs their squares and the products of
neighbours, which are planes, too. The results are the same as with F, but s² times less is read and held.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lsseg.functional import blocks


class FeatureGrid:
    """Represents the features F = U f of a block.

    Args:
        features: f, b×D×h×w.
        size: H, W.
        stride: s; with 1, f is F.
    """

    def __init__(self, features: Tensor, size: tuple[int, int], stride: int) -> None:
        self.cells, self.size, self.stride = features, size, stride
        self.flat = features.flatten(2)
        if stride > 1:
            self.rows = _interpolation(features, features.shape[2], size[0], stride)
            self.columns = _interpolation(features, features.shape[3], size[1], stride)

    def times(self, vectors: Tensor, constant: Tensor, factor: float = 1.0) -> Tensor:
        """Return constant + factor · v·F at every pixel (b×K×P), for vectors v (b×K×D) and a constant (b×K×1)."""
        if self.stride == 1:
            return torch.baddbmm(constant, vectors, self.flat, alpha=factor)
        # The interpolation does not change a constant, because its weights sum to 1.
        planes = torch.baddbmm(constant, vectors, self.flat, alpha=factor)
        return _sandwich(self.rows, self._planes(planes), self.columns.T).flatten(2)

    def drawn(self, weights: Tensor) -> Tensor:
        """Return Σ w F over the pixels (b×K×D), for weights w (b×K×P)."""
        return torch.bmm(self.gathered(weights), self.flat.mT)

    def gathered(self, weights: Tensor) -> Tensor:
        """Return Uᵀ w, b×K×(h·w)."""
        if self.stride == 1:
            return weights
        pixels = weights.view(*weights.shape[:2], *self.size)
        return _sandwich(self.rows.T, pixels, self.columns).flatten(2)

    def energy(self) -> Tensor:
        """Return ‖F‖², b×1×P."""
        if self.stride == 1:
            return _energy(self.flat)
        f = self.cells
        across, down = (f[..., 1:] * f[..., :-1]).sum(1, True), (f[..., 1:, :] * f[..., :-1, :]).sum(1, True)
        diagonal = (f[..., 1:, 1:] * f[..., :-1, :-1]).sum(1, True) + (f[..., 1:, :-1] * f[..., :-1, 1:]).sum(1, True)
        rows, row_pairs, columns, column_pairs = self._squares()
        total = _sandwich(rows, f.square().sum(1, True), columns.T)
        total += _sandwich(rows, across, column_pairs.T)
        total += _sandwich(row_pairs, down, columns.T)
        total += _sandwich(row_pairs, diagonal, column_pairs.T) / 2
        return total.flatten(2)

    def write_gradient(self, along: Tensor, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Write Uᵀ (along · F) + left·right into ``out``, b×D×h×w.

        ``along`` is b×1×P, ``left`` is b×D×R, and ``right`` is b×R×(h·w) from :meth:`gathered`.
        """
        if self.stride == 1:
            torch.mul(self.cells, along.view(len(along), 1, *self.size), out=out)
        else:
            self._write_along(along, out)
        out.flatten(2).baddbmm_(left, right)

    def _write_along(self, along: Tensor, out: Tensor) -> None:
        """Write half the gradient of Σ along · ‖F‖² by f into ``out``, for all squares and products of neighbours."""
        f = self.cells
        pixels = along.view(len(along), 1, *self.size)
        rows, row_pairs, columns, column_pairs = (matrix.mT for matrix in self._squares())
        torch.mul(f, _sandwich(rows, pixels, columns.mT), out=out)
        across = _sandwich(rows, pixels, column_pairs.mT) / 2
        out[..., :-1].addcmul_(across, f[..., 1:])
        out[..., 1:].addcmul_(across, f[..., :-1])
        down = _sandwich(row_pairs, pixels, columns.mT) / 2
        out[..., :-1, :].addcmul_(down, f[..., 1:, :])
        out[..., 1:, :].addcmul_(down, f[..., :-1, :])
        diagonal = _sandwich(row_pairs, pixels, column_pairs.mT) / 4
        out[..., :-1, :-1].addcmul_(diagonal, f[..., 1:, 1:])
        out[..., 1:, 1:].addcmul_(diagonal, f[..., :-1, :-1])
        out[..., :-1, 1:].addcmul_(diagonal, f[..., 1:, :-1])
        out[..., 1:, :-1].addcmul_(diagonal, f[..., :-1, 1:])

    def _squares(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the weights of squares and of products of neighbours, along each axis."""
        return (*_products(self.rows), *_products(self.columns))

    def _planes(self, flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:2], *self.cells.shape[2:])


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize B×D×h×w values to ``size`` by bilinear interpolation."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def enlarged(features: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return F = U f, b×D×H×W, of b×D×h×w features.

    Products of matrices compute it, because their gradient is deterministic on a GPU, too.
    """
    rows = _interpolation(features, features.shape[2], size[0], stride)
    columns = _interpolation(features, features.shape[3], size[1], stride)
    return _sandwich(rows, features, columns.T)


def _interpolation(like: Tensor, cells: int, pixels: int, stride: int) -> Tensor:
    """Return U along one axis, pixels×cells. Each cell lies in the middle of the pixels that it stands for."""
    unit = torch.eye(cells, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(unit, scale_factor=stride, mode="linear", align_corners=False)[0, :, :pixels].T.contiguous()


def _products(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights u_i² of squares and 2 u_i u_{i+1} of products of neighbours in (Σ_i u_i f_i)².

    There are no other products, because a pixel lies between two neighbouring cells.
    """
    return weights.square(), 2 * weights[:, :-1] * weights[:, 1:]


def _sandwich(left: Tensor, planes: Tensor, right: Tensor) -> Tensor:
    """Return left · X · right for every plane X."""
    return left @ planes @ right


def _energy(features: Tensor) -> Tensor:
    """Return ‖F‖², b×1×P. On a device other than a CPU no second tensor of the features' size is made."""
    if blocks.in_cache(features.device):
        return features.square().sum(1, keepdim=True)
    return torch.linalg.vector_norm(features, dim=1, keepdim=True).square_()
