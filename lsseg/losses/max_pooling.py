"""Loss max-pooling (Bulò 2017), the closest rival in Kim 2019, table 5.

Legend: n valid pixels of an image.
"""

import torch
from torch import Tensor, nn

from lsseg.losses.cross_entropy import cross_entropy


class LossMaxPooling(nn.Module):
    """Cross-entropy under the worst weights: max_w Σ w_u ℓ_u with ‖w‖_p ≤ γ, ‖w‖_∞ ≤ τ and w ≥ 0, image by image.

    γ = n^(-1/q) with 1/p + 1/q = 1, so that equal weights 1/n are just possible, and τ = γ m^(-1/p), so that at least
    m = share · n pixels carry weight. At p → 1 and share 1 it is the mean. The gradient is that of the loss under its
    worst weights (their own change adds nothing, being an optimum).

    Args:
        p: The exponent, in (1, ∞); 1.7 in the paper.
        share: m/n in (0, 1]; a quarter in the paper.
        ignore_index: Label of void pixels.

    Raises:
        ValueError: If a value is out of range.

    >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    >>> LossMaxPooling()(logits, target)  # all pixels alike: the mean
    tensor(0.6931)
    """

    def __init__(self, p: float = 1.7, share: float = 0.25, ignore_index: int = 255) -> None:
        super().__init__()
        if not 1 < p < float("inf"):
            raise ValueError(f"p must lie between 1 and infinity, not {p}")
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], not {share}")
        self.p, self.share, self.ignore_index = p, share, ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target: the mean over the images that have a valid pixel."""
        losses = cross_entropy(logits, target, None, self.ignore_index, "none")
        valid = target != self.ignore_index
        pooled = [self._pooled(loss[keep]) for loss, keep in zip(losses, valid, strict=True)]
        return torch.stack(pooled).sum() / valid.flatten(1).any(1).sum().clamp_min(1)

    def _pooled(self, losses: Tensor) -> Tensor:
        if not losses.numel():
            return losses.sum()
        return (worst_weights(losses.detach(), self.p, self.share) * losses).sum()


def worst_weights(losses: Tensor, p: float, share: float) -> Tensor:
    """The weights of n losses (≥ 0) that maximise their sum: w = min(τ, c · ℓ^(1/(p-1))), with c such that ‖w‖_p = γ.

    With k losses at the cap that is k + (c/τ)^p · Σ ℓ^q over the others = m, since γ^p = m τ^p; k is the least number
    with which no other one exceeds the cap. Powers are kept as logarithms: q is large for p near 1.
    """
    count = len(losses)
    least = share * count
    power, order = (losses.double().log() * (p / (p - 1))).sort(descending=True)
    others = power.flip(0).logcumsumexp(0).flip(0)  # log Σ ℓ^q over a loss and all smaller ones
    left = (least - torch.arange(count, device=losses.device, dtype=power.dtype)).clamp_min(0).log()
    capped = int((left + power > others).sum())  # these come first: the sum falls faster than what is left
    weights = torch.ones_like(power)
    if capped < count and others[capped] > -torch.inf:
        weights[capped:] = ((left[capped] - others[capped] + power[capped:]) / p).exp().clamp_max(1)
    tau = count ** (1 / p - 1) * least ** (-1 / p)
    return torch.empty_like(weights).scatter_(0, order, weights * tau).to(losses.dtype)
