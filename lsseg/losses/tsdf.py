"""The loss of truncated signed distance functions (Homayounfar 2020, section 4.2)."""

import torch
from torch import Tensor, nn

from lsseg.functional.heaviside import arctan_step


class TSDFLoss(nn.Module):
    """mean |φ - φ_GT| + mean BCE(H_ε(φ), M_GT) over the valid pixels (Homayounfar 2020, section 4.2).

    H is the arctan step function; both H(φ) and 1 - H(φ) = H(-φ) keep their tails in float32, so the logarithm is
    finite wherever φ is.

    Args:
        epsilon: ε > 0, width of the step in units of φ; 0.1 in the paper.

    >>> phi = torch.tensor([[-0.5, 0.5]])
    >>> TSDFLoss()(phi, phi, phi > 0)  # -log H_0.1(½)
    tensor(0.0649)
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, not {epsilon}")
        self.epsilon = epsilon

    def forward(self, phi: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scalar loss; 0 (with zero gradient) where nothing is valid.

        Args:
            phi: Any shape.
            target: φ_GT, normalised like φ; the shape of ``phi``.
            mask: M_GT, bool, the shape of ``phi``.
            valid: Bool, broadcast to ``phi``: pixels that count; None is all of them.
        """
        exact = phi if phi.dtype == torch.float64 else phi.float()
        distance = (exact - target).abs()
        signed = torch.where(mask, exact, -exact)
        entropy = -arctan_step(signed, signed.new_full((), self.epsilon)).log()
        loss = distance + entropy
        if valid is None:
            return loss.sum() / max(1, loss.numel())
        return torch.where(valid, loss, 0).sum() / valid.expand_as(loss).sum().clamp_min(1)
