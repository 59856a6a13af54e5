"""Cross-entropy and any other loss, weighted: how the rivals of the level-set loss are trained."""

import torch
from torch import Tensor, nn

from lsseg.losses.cross_entropy import CrossEntropyLoss


class CrossEntropyPlus(nn.Module):
    """Cross-entropy + weight · another loss of logits and target.

    The other one is given float32 logits (smp's overflow in half precision), and nothing where no pixel is valid (some
    are NaN there).

    Args:
        loss: Maps B×C×H×W logits and a B×H×W target to a scalar, void pixels left out by itself, such as
            ``lsseg.losses.BoundaryLoss`` or ``segmentation_models_pytorch.losses.DiceLoss``.
        weight: Of it.
        ignore_index: Label of void pixels.

    Raises:
        ValueError: If the weight is negative.

    >>> loss = CrossEntropyPlus(CrossEntropyLoss(), 0.5)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    tensor(1.0397)
    """

    def __init__(self, loss: nn.Module, weight: float = 1.0, ignore_index: int = 255) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must not be negative, not {weight}")
        self.cross_entropy = CrossEntropyLoss(ignore_index)
        self.loss = loss
        self.weight = weight
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target."""
        total = self.cross_entropy(logits, target)
        if bool((target == self.ignore_index).all()):
            return total
        with torch.autocast(logits.device.type, enabled=False):
            other = self.loss(logits if logits.dtype == torch.float64 else logits.float(), target)
        result: Tensor = total + self.weight * other
        return result
