"""Computes metrics of label maps, and the counts of images and their sums that all their scores are made of.

Legend: B images of a batch, N of a data set, C classes, R radii.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from lsseg.functional import boundary_counts, boundary_f1, class_iou, confusion_matrix, overlap_counts, pixel_accuracy

RADII = (1, 2, 3)  # of boundary scores, in pixels


def _overlap(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return B×C×3 counts; see :func:`~lsseg.functional.overlap_counts`."""
    return overlap_counts(confusion_matrix(prediction, target, num_classes, ignore_index))


def _boundary(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return B×R×C×4 counts; see :func:`~lsseg.functional.boundary_counts`."""
    return torch.stack([boundary_counts(prediction, target, num_classes, r, ignore_index) for r in RADII], 1)


# Each function maps B×H×W predicted labels, their truth, C and the label of void to int64 counts, B×….
COUNTERS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {"overlap": _overlap, "boundary": _boundary}


class Counts(Metric):
    """Provides the base of metrics that keep all counts.

    Args:
        num_classes: C.
        ignore_index: Label of void pixels.
    """

    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def counted(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the counts of B×H×W predicted labels and their truth, by name."""
        return {
            name: count(prediction, target, self.num_classes, self.ignore_index) for name, count in COUNTERS.items()
        }


class CountSums(Counts):
    """Sums the counts of a data set as integers over images and ranks, so that its division does not matter."""

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index)
        nothing = torch.full((1, 1, 1), ignore_index)
        for name, counts in self.counted(torch.zeros_like(nothing), nothing).items():
            self.add_state(name, torch.zeros_like(counts[0]), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add B×H×W predicted labels and their truth."""
        for name, counts in self.counted(prediction, target).items():
            setattr(self, name, getattr(self, name) + counts.sum(0))

    def compute(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        return {name: getattr(self, name) for name in COUNTERS}


class PerImage(Counts):
    """Keeps the counts of each image of all ranks, in the data set's order, for a bootstrap over images."""

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index)
        for name in ("index", *COUNTERS):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor, index: Tensor) -> None:
        """Add B×H×W predicted labels, their truth and the images' places in the data set; negative ones are ignored."""
        states: dict[str, Any] = {name: getattr(self, name) for name in ("index", *COUNTERS)}
        states["index"].append(index)
        for name, counts in self.counted(prediction, target).items():
            states[name].append(counts)

    def compute(self) -> dict[str, Tensor]:
        """Return ``index`` (N), ``overlap`` (N×C×3) and ``boundary`` (N×R×C×4), sorted by index."""
        # A list state is one tensor after ranks are joined, and a list before.
        parts = {name: getattr(self, name) for name in ("index", *COUNTERS)}
        joined = {name: part if isinstance(part, Tensor) else torch.cat(part) for name, part in parts.items()}
        order = joined["index"].argsort()
        order = order[joined["index"][order] >= 0]
        return {name: part[order] for name, part in joined.items()}


class Overlap(MulticlassConfusionMatrix):
    """Computes pixel accuracy, mean IoU and the IoU of every class over the whole data set.

    torchmetrics accumulates the confusion matrix (int64, summed over ranks). The scores come from it in float64.
    A class that is in neither truth nor prediction has no IoU (NaN) and is left out of the mean.

    Args:
        num_classes: C.
        ignore_index: Label of void pixels.

    >>> import torch
    >>> metric = Overlap(num_classes=2)
    >>> scores = metric(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]))
    >>> float(scores["accuracy"]), float(scores["miou"])
    (0.5, 0.25)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Return ``accuracy`` and ``miou`` (scalars) and ``iou`` (C)."""
        counts = overlap_counts(self.confmat)
        iou = class_iou(counts)
        return {"accuracy": pixel_accuracy(counts), "miou": iou.nanmean(), "iou": iou}


class BoundaryF1(Metric):
    """Computes the F measure of each class's boundary pixels, matched within ``radius`` pixels, over the data set.

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
        """Return C float64 values; NaN for a class without boundary pixels in either map."""
        return boundary_f1(self.counts)
