"""Cross-entropy, the baseline of every comparison."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsseg.losses.processes import share_of_pixels


class CrossEntropyLoss(nn.Module):
    """Mean cross-entropy over the valid pixels of the batch; 0 where there are none (torch's own is NaN there).

    The batch is that of all processes that train together.

    Args:
        ignore_index: Label of void pixels.

    >>> CrossEntropyLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    tensor(0.6931)
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target."""
        # A sum over 10⁵ pixels overflows float16 and says little in bfloat16.
        exact = logits if logits.dtype == torch.float64 else logits.float()
        total = F.cross_entropy(exact, target.long(), ignore_index=self.ignore_index, reduction="sum")
        valid = target != self.ignore_index
        return total / valid.sum().clamp_min(1) * share_of_pixels(valid, self.training)
