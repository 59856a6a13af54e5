"""The loss of truncated signed distance functions (Homayounfar 2020, section 4.2)."""

from torch import Tensor, nn

from lsseg.functional import tsdf_loss


class TSDFLoss(nn.Module):
    """:func:`~lsseg.functional.tsdf_loss` as a module.

    Args:
        epsilon: ε > 0, width of the step in units of φ; 0.1 in the paper.

    >>> import torch
    >>> phi = torch.tensor([[-0.5, 0.5]])
    >>> TSDFLoss()(phi, phi, phi > 0)
    tensor(0.0649)
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, not {epsilon}")
        self.epsilon = epsilon

    def forward(self, phi: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scalar loss of φ, φ_GT and M_GT, all of one shape; see the function."""
        return tsdf_loss(phi, target, mask, valid, self.epsilon)
