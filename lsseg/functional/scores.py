"""Counts the pixels and boundary pixels of label maps, and computes scores from the counts.

Legend: B images, H×W pixels, C classes. … stands for any leading dimensions (images, bootstrap samples). Distances are
Euclidean, in pixels.
"""

import torch
from torch import Tensor


def label_boundary(labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Return the pixels that have a 4-neighbour with another valid label.

    The image's edge is no boundary, and neither is the edge of a void region.

    Args:
        labels: B×H×W integer labels.
        ignore_index: Label of void pixels, which are never boundary.

    Returns:
        B×H×W bool.

    >>> label_boundary(torch.tensor([[[0, 0, 1, 255, 0]]]))
    tensor([[[False,  True,  True, False, False]]])
    """
    boundary = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (1, 2):
        size = labels.shape[dim]
        one, two = labels.narrow(dim, 0, max(size - 1, 0)), labels.narrow(dim, min(1, size), max(size - 1, 0))
        edge = (one != two) & (one != ignore_index) & (two != ignore_index)
        boundary.narrow(dim, 0, max(size - 1, 0)).logical_or_(edge)
        boundary.narrow(dim, min(1, size), max(size - 1, 0)).logical_or_(edge)
    return boundary


def boundary_counts(
    prediction: Tensor, target: Tensor, num_classes: int, radius: int, ignore_index: int = 255
) -> Tensor:
    """Count the matched and all boundary pixels of every class, in both maps.

    A boundary pixel of class c is matched if the other map has a boundary pixel of class c at distance ≤ ``radius``.
    Pixels within ``radius`` of a void pixel of the target are not counted, but other pixels can still match them.

    The cost does not grow with C, because whole label maps are compared for each offset of the disc.

    Args:
        prediction: B×H×W labels in 0..C-1.
        target: B×H×W labels in 0..C-1, or ``ignore_index``.
        num_classes: C.
        radius: Radius in pixels, ≥ 0.
        ignore_index: Label of void pixels.

    Returns:
        B×C×4 int64: matched and all boundary pixels of the prediction, then matched and all of the target.

    Raises:
        ValueError: If ``radius`` is negative, or if one of the maps does not hold labels or (on a CPU) holds others.
    """
    if radius < 0:
        raise ValueError(f"radius must be at least 0, not {radius}")
    _check_labels(prediction, target, num_classes, ignore_index)
    void = target == ignore_index
    # int16 needs a quarter of the memory traffic of int64 labels. -1 is no class.
    maps = []
    for labels in (prediction.masked_fill(void, ignore_index), target):
        maps.append(labels.to(torch.int16).masked_fill(~label_boundary(labels, ignore_index), -1))
    near_void = void.clone()
    found = [torch.zeros_like(void), torch.zeros_like(void)]
    for dy, dx in _disc(radius):
        here, there = _overlap(void.shape, dy, dx)
        near_void[here] |= void[there]
        found[0][here] |= maps[0][here] == maps[1][there]
        found[1][here] |= maps[1][here] == maps[0][there]
    counts = []
    for own, matched in zip(maps, found, strict=True):
        # Pixels that do not count go to an extra class, which is cut off at the end.
        kept = own.masked_fill(near_void | (own < 0), num_classes).long().flatten(1)
        for weight in (matched.flatten(1).long(), torch.ones_like(kept)):
            total = torch.zeros(len(kept), num_classes + 1, dtype=torch.int64, device=kept.device)
            counts.append(total.scatter_add_(1, kept, weight)[:, :num_classes])
    return torch.stack(counts, 2)


def _disc(radius: int) -> list[tuple[int, int]]:
    span = range(-radius, radius + 1)
    return [(dy, dx) for dy in span for dx in span if dy * dy + dx * dx <= radius * radius]


def _overlap(shape: torch.Size, dy: int, dx: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices of all pixels that have a neighbour at (dy, dx), and of those neighbours."""
    height, width = shape[-2:]
    here = (slice(max(0, -dy), max(0, height - max(0, dy))), slice(max(0, -dx), max(0, width - max(0, dx))))
    there = (slice(max(0, dy), max(0, height + min(0, dy))), slice(max(0, dx), max(0, width + min(0, dx))))
    return (slice(None), *here), (slice(None), *there)


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of every (true class, predicted class), image by image.

    Args:
        prediction: B×H×W labels in 0..C-1.
        target: B×H×W labels in 0..C-1, or ``ignore_index`` for pixels that do not count.
        num_classes: C.
        ignore_index: Label of void pixels.

    Returns:
        B×C×C int64, with the true classes as rows.

    Raises:
        ValueError: If one of the maps does not hold labels or (on a CPU) holds others.

    >>> confusion_matrix(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]), 2)
    tensor([[[1, 1],
             [0, 0]]])
    """
    _check_labels(prediction, target, num_classes, ignore_index)
    cells = num_classes * num_classes
    void = target == ignore_index
    cell = (target.long() * num_classes + prediction).masked_fill(void, cells).flatten(1)
    offset = torch.arange(len(cell), device=cell.device).unsqueeze(1) * (cells + 1)
    counts = torch.bincount((cell + offset).flatten(), minlength=len(cell) * (cells + 1))
    return counts.view(-1, cells + 1)[:, :cells].reshape(-1, num_classes, num_classes)


def _check_labels(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse maps that are not B×H×W labels of one shape, and on a CPU labels of valid pixels that name no class."""
    shapes = [tuple(labels.shape) for labels in (prediction, target)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or prediction.is_floating_point() or target.is_floating_point():
        raise ValueError(
            "prediction and target must be integer labels B×H×W of one shape, not "
            f"{shapes[0]} of {prediction.dtype} and {shapes[1]} of {target.dtype}"
        )
    void = target == ignore_index
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.device.type == "cpu" and labels.numel():  # a GPU would be waited for
            least, most = map(int, labels.masked_fill(void, 0).aminmax())
            if least < 0 or most >= num_classes:
                wrong = least if least < 0 else most
                raise ValueError(f"{name} holds the label {wrong}, but labels must lie in 0..{num_classes - 1}")


def overlap_counts(confusion: Tensor) -> Tensor:
    """Return the counts that IoU and accuracy need from a confusion matrix: 3·C numbers instead of C².

    Args:
        confusion: …×C×C counts, with the true classes as rows.

    Returns:
        …×C×3: pixels of the class in both maps, in the truth, and in the prediction.
    """
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], -1)


def class_iou(counts: Tensor) -> Tensor:
    """Return the intersection over union of every class, which is NaN for a class in neither truth nor prediction.

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
    """Return the share of valid pixels with the right label, which is NaN without valid pixels.

    Args:
        counts: …×C×3 from :func:`overlap_counts`.

    Returns:
        … float64 in [0, 1].
    """
    both, truth, _ = counts.double().unbind(-1)
    return both.sum(-1) / truth.sum(-1)


def boundary_f1(counts: Tensor) -> Tensor:
    """Return the F measure of every class from :func:`~lsseg.functional.boundary_counts`.

    Args:
        counts: …×C×4.

    Returns:
        …×C float64 in [0, 1]. It is 0 where only one map has boundary pixels, or where none is matched. It is NaN where
        neither map has any.
    """
    hit_prediction, prediction, hit_target, target = counts.double().unbind(-1)
    precision, recall = hit_prediction / prediction, hit_target / target
    score = 2 * precision * recall / (precision + recall)
    one_sided = (prediction == 0) != (target == 0)
    unmatched = (prediction > 0) & (target > 0) & (hit_prediction + hit_target == 0)
    return torch.where(one_sided | unmatched, 0.0, score)
