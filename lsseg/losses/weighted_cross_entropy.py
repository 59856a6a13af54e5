"""Weighted cross-entropy of DMLS: rare classes and boundaries count more (Zhang 2019, eq. 11-12)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lsseg.functional import label_boundary
from lsseg.losses.cross_entropy import cross_entropy
from lsseg.losses.pixel_mean import PixelMean


class WeightedCrossEntropy(PixelMean):
    """Cross-entropy with the weight w_c + boundary_weight · 1[boundary] at a pixel of class c (Zhang 2019, eq. 11-12).

    The sum is divided by the number of valid pixels, not by that of the weights.
    The paper's λ‖θ‖² is the optimiser's weight decay.

    Args:
        class_weights: w_c of every class, such as :func:`~lsseg.data.frequencies.median_frequency_weights`; None is 1.
        boundary_weight: Added at pixels of which a 4-neighbour carries another valid label.
        ignore_index: Label of void pixels.

    >>> logits, target = torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 0, 1]]])
    >>> WeightedCrossEntropy([1.0, 3.0])(logits, target) / torch.tensor(2.0).log()  # (1 + (1 + 1) + (3 + 1)) / 3
    tensor(2.3333)
    """

    class_weights: Tensor | None

    def __init__(
        self, class_weights: Sequence[float] | None = None, boundary_weight: float = 1.0, ignore_index: int = 255
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)
        self.boundary_weight = boundary_weight
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of B×C×H×W logits on a B×H×W target; 0 where every pixel is void."""
        target = target.long()
        weights = self.class_weights
        if weights is not None:
            weights = weights.to(torch.promote_types(logits.dtype, torch.float32))
        if self.boundary_weight == 0:
            total = cross_entropy(logits, target, weights, self.ignore_index, "sum")
        else:
            total = self._with_boundary(logits, target, weights)
        valid = target != self.ignore_index
        return self.over_processes_too(total / valid.sum().clamp_min(1), lambda: valid)

    def _with_boundary(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        by_pixel = cross_entropy(logits, target, None, self.ignore_index, "none")
        weight = self.boundary_weight * label_boundary(target, self.ignore_index)
        valid = target != self.ignore_index
        weight = weight + (1.0 if weights is None else weights[(target * valid).clamp(0, len(weights) - 1)])
        return torch.where(valid, by_pixel * weight, 0).sum()
