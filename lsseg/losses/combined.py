"""Cross-entropy and any other loss, weighted: how the rivals of the level-set loss are trained.

Legend: B images, C classes, H×W pixels, n of them valid.
"""

import torch
from torch import Tensor, nn

from lsseg.losses.cross_entropy import CrossEntropyLoss
from lsseg.losses.level_set import CrossEntropyLevelSetLoss


class CrossEntropyPlus(nn.Module):
    """Cross-entropy + weight · another loss of logits and target.

    The other one is given float32 logits (smp's overflow in half precision), and nothing where no pixel is valid (some
    are NaN there).

    Args:
        loss: Maps B×C×H×W logits and a B×H×W target to a scalar, such as ``lsseg.losses.BoundaryLoss`` or
            ``segmentation_models_pytorch.losses.DiceLoss``.
        weight: Weight of the loss.
        cross_entropy_weight: Weight of cross-entropy.
        pixels: Whether the other loss takes pixels as a set, as those of overlap do: it is given the valid ones of the
            batch, 1×C×n×1 and 1×n×1, and needs to know nothing of void. Otherwise it must leave out void by itself.
        level_set_weight: λ of the level-set energy (Kim 2019, eq. 8), which is a third term and is computed in one pass
            with cross-entropy; 0 leaves it out.
        ignore_index: Label of void pixels.

    Raises:
        ValueError: If a weight is negative.

    >>> loss = CrossEntropyPlus(CrossEntropyLoss(), 0.5)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    tensor(1.0397)
    """

    def __init__(
        self,
        loss: nn.Module,
        weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        pixels: bool = False,
        level_set_weight: float = 0.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        weights = {"weight": weight, "cross_entropy_weight": cross_entropy_weight, "level_set_weight": level_set_weight}
        for key, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{key} must not be negative, not {value}")
        self.cross_entropy = CrossEntropyLoss(ignore_index)
        self.level_set = CrossEntropyLevelSetLoss(level_set_weight, ignore_index=ignore_index)
        self.loss = loss
        self.weight = weight
        self.cross_entropy_weight = cross_entropy_weight
        self.pixels = pixels
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target."""
        total = self._cross_entropy_and_level_set(logits, target)
        valid = target != self.ignore_index
        if not bool(valid.any()):
            return total
        exact = logits if logits.dtype == torch.float64 else logits.float()
        if self.pixels:
            exact, target = exact.movedim(1, -1)[valid].T[None, ..., None], target[valid][None, :, None]
        with torch.autocast(logits.device.type, enabled=False):
            result: Tensor = total + self.weight * self.loss(exact, target)
        return result

    def _cross_entropy_and_level_set(self, logits: Tensor, target: Tensor) -> Tensor:
        if not self.level_set.level_set_weight:
            result: Tensor = self.cross_entropy_weight * self.cross_entropy(logits, target)
            return result
        cross_entropy, energy = self.level_set.terms(logits, target)
        return self.cross_entropy_weight * cross_entropy + self.level_set.level_set_weight * energy
