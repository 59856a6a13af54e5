"""From counts to scores: what the metrics and the report both compute.

Legend: C classes; … any leading dimensions (images, bootstrap samples).
"""

import torch
from torch import Tensor


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Pixels of every (true class, predicted class), image by image.

    Args:
        prediction: B×H×W labels in 0..C-1.
        target: B×H×W labels in 0..C-1, or ``ignore_index`` for pixels that do not count.
        num_classes: C.
        ignore_index: Label of void pixels.

    Returns:
        B×C×C int64, rows the truth.

    >>> confusion_matrix(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]), 2)
    tensor([[[1, 1],
             [0, 0]]])
    """
    cells = num_classes * num_classes
    void = target == ignore_index
    cell = (target.long() * num_classes + prediction).masked_fill(void, cells).flatten(1)
    offset = torch.arange(len(cell), device=cell.device).unsqueeze(1) * (cells + 1)
    counts = torch.bincount((cell + offset).flatten(), minlength=len(cell) * (cells + 1))
    return counts.view(-1, cells + 1)[:, :cells].reshape(-1, num_classes, num_classes)


def overlap_counts(confusion: Tensor) -> Tensor:
    """What IoU and accuracy need of a confusion matrix: C numbers three times over instead of C².

    Args:
        confusion: …×C×C counts, rows the truth.

    Returns:
        …×C×3: pixels in both, in the truth, in the prediction.
    """
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], -1)


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union of every class; NaN for a class that is in neither truth nor prediction.

    Args:
        counts: …×C×3 from :func:`overlap_counts`.

    Returns:
        …×C float64 in [0, 1].

    >>> class_iou(torch.tensor([[1, 2, 1], [0, 0, 1]]))
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    both, truth, prediction = counts.double().unbind(-1)
    return both / (truth + prediction - both)


def pixel_accuracy(counts: Tensor) -> Tensor:
    """Share of valid pixels with the right label; NaN where there is none.

    Args:
        counts: …×C×3 from :func:`overlap_counts`.

    Returns:
        … float64 in [0, 1].
    """
    both, truth, _ = counts.double().unbind(-1)
    return both.sum(-1) / truth.sum(-1)


def boundary_f1(counts: Tensor) -> Tensor:
    """F measure of every class from :func:`~lsseg.functional.boundary_counts`.

    Args:
        counts: …×C×4.

    Returns:
        …×C float64 in [0, 1]; 0 where one map has boundary pixels and none is matched, NaN where neither has any.
    """
    hit_prediction, prediction, hit_target, target = counts.double().unbind(-1)
    precision, recall = hit_prediction / prediction, hit_target / target
    score = 2 * precision * recall / (precision + recall)
    one_sided = (prediction == 0) != (target == 0)
    unmatched = (prediction > 0) & (target > 0) & (hit_prediction + hit_target == 0)
    return torch.where(one_sided | unmatched, 0.0, score)
