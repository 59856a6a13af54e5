"""Boundary F measure at a tolerance of a few pixels."""

import torch
from torch import Tensor
from torchmetrics import Metric

from lsseg.functional import boundary_counts, boundary_f1


class BoundaryF1(Metric):
    """F measure of every class's boundary pixels, matched within ``radius`` pixels, over the whole data set.

    Counts are summed as integers over images and ranks before precision and recall are formed, so the result does not
    depend on how the data set is divided. Pixels within ``radius`` of void are left out.

    Args:
        num_classes: C.
        radius: Tolerance in pixels, ≥ 0.
        ignore_index: Label of void pixels.

    >>> metric = BoundaryF1(num_classes=2, radius=1)
    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> metric(labels, labels)
    tensor([1., 1.], dtype=torch.float64)
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor

    def __init__(self, num_classes: int, radius: int, ignore_index: int = 255) -> None:
        super().__init__()
        if radius < 0:
            raise ValueError(f"radius must be at least 0, not {radius}")
        self.num_classes, self.radius, self.ignore_index = num_classes, radius, ignore_index
        self.add_state("counts", torch.zeros(num_classes, 4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add B×H×W predicted labels and their truth."""
        self.counts += boundary_counts(prediction, target, self.num_classes, self.radius, self.ignore_index).sum(0)

    def compute(self) -> Tensor:
        """C float64; NaN for a class without boundary pixels in either map."""
        return boundary_f1(self.counts)
