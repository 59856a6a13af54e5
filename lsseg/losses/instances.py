"""Computes losses of signed distances (Homayounfar 2020, section 4.2) and of DELSE, the edge-based rival (Wang 2019).

Legend: M objects, H×W pixels.
"""

import torch
from torch import Tensor, nn

from lsseg.errors import require
from lsseg.functional import tsdf_loss
from lsseg.functional.blocks import wide
from lsseg.functional.edge_evolution import towards_contour
from lsseg.functional.heaviside import arctan_step


class ClassBalancedLoss(nn.Module):
    """Computes cross-entropy of H_ε(φ) with equal weight for inside and outside of an object, averaged over objects.

    Args:
        epsilon: ε > 0, width of the step in units of φ.

    >>> loss = ClassBalancedLoss()(torch.zeros(1, 1, 4), torch.tensor([[[True, False, False, False]]]))
    >>> loss / torch.tensor(2.0).log()  # H is ½ everywhere
    tensor(1.)
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        require(0 < epsilon < float("inf"), "epsilon", epsilon, "must be positive")
        self.epsilon = epsilon

    def forward(self, phi: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of φ and a bool mask, both M×H×W; 0 where there is no object."""
        exact = wide(phi)
        entropy = -arctan_step(torch.where(mask, exact, -exact), exact.new_full((), self.epsilon)).log()
        sides = []
        for side in (mask, ~mask):
            share = side.to(entropy.dtype)
            sides.append((entropy * share).sum((1, 2)) / share.sum((1, 2)).clamp_min(1))
        # An object that fills its box, or has no pixel in it, has one side only.
        present = torch.stack([mask.any(2).any(1), (~mask).any(2).any(1)]).to(entropy.dtype).sum(0).clamp_min(1)
        return ((sides[0] + sides[1]) / present).sum() / max(1, len(phi))


class VelocityLoss(nn.Module):
    """Computes the mean squared angle between a velocity and the direction to the nearest contour, where it exists.

    >>> mask = torch.tensor([[[False, False, True, True]]])
    >>> right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    >>> VelocityLoss()(right, mask)  # right in the left half, π off in the right one
    tensor(4.9348)
    """

    def forward(self, velocity: Tensor, mask: Tensor) -> Tensor:
        """Return the scalar loss of an M×2×H×W velocity (x, y) and an M×H×W bool mask; 0 where there is no contour."""
        exact = wide(velocity)
        towards, valid = towards_contour(mask)
        (vx, vy), (tx, ty) = exact.unbind(1), towards.to(exact.dtype).unbind(1)
        along = torch.where(valid, vx * tx + vy * ty, 1)
        across = torch.where(valid, vx * ty - vy * tx, 0)
        angle = torch.atan2(across, along)  # Unlike the arc cosine it has a gradient at 0 and at π.
        return angle.square().sum() / valid.sum().clamp_min(1)


class TSDFLoss(nn.Module):
    """Applies :func:`~lsseg.functional.tsdf_loss` as a module.

    Args:
        epsilon: ε > 0, width of the step in units of φ; 0.1 in the paper.

    >>> import torch
    >>> phi = torch.tensor([[-0.5, 0.5]])
    >>> TSDFLoss()(phi, phi, phi > 0)
    tensor(0.0649)
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        require(0 < epsilon < float("inf"), "epsilon", epsilon, "must be positive")
        self.epsilon = epsilon

    def forward(self, phi: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the scalar loss of φ, φ_GT and M_GT, all of one shape; see the function."""
        return tsdf_loss(phi, target, mask, valid, self.epsilon)
