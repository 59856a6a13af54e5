"""Pixel accuracy and intersection over union from one confusion matrix."""

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lsseg.functional import class_iou, overlap_counts, pixel_accuracy


class Overlap(MulticlassConfusionMatrix):
    """Pixel accuracy, mean IoU and IoU of every class over the whole data set.

    torchmetrics accumulates the confusion matrix (int64, summed over ranks); the scores are formed from it in float64.
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
        """``accuracy`` and ``miou`` (scalars) and ``iou`` (C)."""
        counts = overlap_counts(self.confmat)
        iou = class_iou(counts)
        return {"accuracy": pixel_accuracy(counts), "miou": iou.nanmean(), "iou": iou}
