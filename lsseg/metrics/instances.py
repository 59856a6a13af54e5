"""Matches detections with objects over a data set, and computes the boundary scores of true positives (AF).

Legend: n detections and m objects of an image, H×W pixels, T thresholds of overlap, R radii, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchmetrics import Metric

from lsseg.functional import boundary_counts, boundary_f1
from lsseg.functional.instances import FOUND, THRESHOLDS, average_precision, match_detections

DETECTIONS = 100  # of an image and class, as in the evaluator
Found = dict[str, Tensor]
# These columns of a row come before the T kinds and the T×R boundary scores of a detection.
HEAD = ("image", "label", "score")


class InstanceMatches(Metric):
    """Keeps what every detection found at each IoU threshold, and how well the contours of both agree.

    Rows are kept in float64 and sorted before anything is summed, so that scores computed from them are the same to the
    last digit on any number of processes.

    Args:
        num_classes: C.
        radii: Tolerances of the boundary scores in pixels.
        detections: Most detections of an image and class that count; the official number is 100.
    """

    full_state_update = False
    found: list[Tensor]
    objects: list[Tensor]

    def __init__(self, num_classes: int, radii: Sequence[int] = (1, 2), detections: int = DETECTIONS) -> None:
        super().__init__()
        self.num_classes, self.radii, self.most = num_classes, tuple(radii), detections
        for name in ("found", "objects"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, found: Sequence[Found], truth: Sequence[Found], index: Tensor) -> None:
        """Add images.

        Args:
            found: For every image: ``masks`` (n×H×W bool), ``scores`` (n), ``labels`` (n).
            truth: For every image: ``masks`` (m×H×W bool), ``labels`` (m), ``crowd`` (m bool).
            index: The images' places in the data set; images with a negative place do not count.
        """
        for image, own, theirs in zip(index.tolist(), found, truth, strict=True):
            if image >= 0:
                self._add(image, own, theirs)
            else:  # A rank without a single image must have a tensor of the right type to send.
                self.found.append(torch.zeros(0, self._width(), dtype=torch.float64, device=self.device))
                self.objects.append(torch.zeros(0, 1 + self.num_classes, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return all rows, sorted by image.

        ``detections`` is N×(3 + T + T·R): image, label, score, T kinds, T×R boundary F (NaN except for true positives).
        ``objects`` is images×(1 + C): image, and the number of its objects of each class without crowds.
        """
        return {
            "detections": _ordered(self.found, self._width()),
            "objects": _ordered(self.objects, 1 + self.num_classes),
        }

    def _width(self) -> int:
        return len(HEAD) + len(THRESHOLDS) * (1 + len(self.radii))

    def _add(self, image: int, found: Found, truth: Found) -> None:
        own, theirs = found["masks"].cpu().numpy(), truth["masks"].cpu().numpy()
        labels, known = found["labels"].cpu().numpy(), truth["labels"].cpu().numpy()
        crowd = truth["crowd"].cpu().numpy().astype(bool)
        scores = found["scores"].double().cpu().numpy()
        rows = [np.zeros((0, self._width()))]
        for label in np.union1d(labels, known):
            mine = np.flatnonzero(labels == label)
            mine = mine[np.argsort(-scores[mine], kind="stable")][: self.most]
            there = np.flatnonzero(known == label)
            chosen, what = match_detections(_overlap(own[mine], theirs[there], crowd[there]), crowd[there])
            boundary = self._boundary(own[mine], theirs[there], chosen, what)
            head = np.stack([np.full(len(mine), image), np.full(len(mine), label), scores[mine]], 1)
            rows.append(np.concatenate([head, what.T, boundary], 1))
        count = np.bincount(known[~crowd], minlength=self.num_classes)[: self.num_classes]
        self.found.append(torch.from_numpy(np.concatenate(rows)).to(self.device))
        self.objects.append(torch.from_numpy(np.append(image, count)[None].astype(float)).to(self.device))

    def _boundary(
        self,
        own: npt.NDArray[np.bool_],
        theirs: npt.NDArray[np.bool_],
        chosen: npt.NDArray[np.int64],
        what: npt.NDArray[np.int8],
    ) -> npt.NDArray[np.float64]:
        """Return boundary F of every detection at every threshold and radius, n×(T·R)."""
        known: dict[tuple[int, int], list[float]] = {}
        result = np.full((len(own), len(chosen), len(self.radii)), np.nan)
        for t, d in zip(*np.nonzero(what == FOUND), strict=True):
            pair = (int(d), int(chosen[t, d]))
            if pair not in known:
                known[pair] = [pair_boundary_f1(own[pair[0]], theirs[pair[1]], radius) for radius in self.radii]
            result[d, t] = known[pair]
        return result.reshape(len(own), len(chosen) * len(self.radii))


class AverageBoundaryF1(InstanceMatches):
    """Computes AF, boundary F of true positives averaged over IoU thresholds and classes (Homayounfar 2020, table 5).

    The metric takes the mean of F over the true positives of each class and threshold .50:.05:.95, then the mean over
    thresholds, and then the mean over classes. A class and threshold without a true positive is left out and counted.

    Args:
        num_classes: C.
        radius: Tolerance in pixels.

    >>> square = torch.zeros(1, 9, 9, dtype=torch.bool)
    >>> square[:, 2:6, 2:6] = True
    >>> found = {"masks": square, "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.long)}
    >>> metric = AverageBoundaryF1(num_classes=1, radius=1)
    >>> metric.update([found], [{**found, "crowd": torch.zeros(1, dtype=torch.bool)}], torch.tensor([0]))
    >>> {name: float(value) for name, value in metric.compute().items()}
    {'af': 1.0, 'left_out': 0.0}
    """

    def __init__(self, num_classes: int, radius: int) -> None:
        super().__init__(num_classes, (radius,))

    def compute(self) -> dict[str, Tensor]:
        """Return ``af`` (NaN if nothing was found) and ``left_out``, the number of class-threshold pairs left out."""
        by_class, left_out = boundary_averages(super().compute()["detections"], self.num_classes, 1)
        return {"af": by_class[:, 0].nanmean(), "left_out": left_out}


def boundary_averages(detections: Tensor, num_classes: int, radii: int) -> tuple[Tensor, Tensor]:
    """Return AF of every class and radius, C×R (NaN if nothing was found), and how many class-threshold pairs are NaN.

    Args:
        detections: Rows of :class:`InstanceMatches`.
        num_classes: C.
        radii: R.
    """
    steps = len(THRESHOLDS)
    scores = detections[:, len(HEAD) + steps :].view(-1, steps, radii)
    # C×T×R; NaN without a true positive
    cells = torch.stack([scores[detections[:, 1] == label].nanmean(0) for label in range(num_classes)])
    return cells.nanmean(1), cells[..., 0].isnan().sum()


class TrueBoxScores(Metric):
    """Measures how well masks found in the objects' true boxes agree with the objects, as means over all objects.

    Average precision mixes how well boxes are found with how well they are filled. This class measures only the second.

    Args:
        radius: Tolerance of the boundary score in pixels.

    >>> metric = TrueBoxScores()
    >>> truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> truth[:, :2] = True
    >>> metric.update([truth | True], [truth], torch.tensor([0]))
    >>> {name: float(score) for name, score in metric.compute().items()}
    {'true_box_iou': 0.5, 'true_box_f1': 0.0}
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, radius: int = 1) -> None:
        super().__init__()
        self.radius = radius
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, found: Sequence[Tensor], truth: Sequence[Tensor], index: Tensor) -> None:
        """Add images.

        Args:
            found: For every image: the masks that were found in its objects' boxes, m×H×W bool.
            truth: For every image: its objects, m×H×W bool; an object without a pixel does not count.
            index: The images' places in the data set; images with a negative place do not count.
        """
        for image, own, theirs in zip(index.tolist(), found, truth, strict=True):
            pairs = zip(own.cpu().numpy(), theirs.cpu().numpy(), strict=True)
            rows = [(image, *self._scores(mine, known)) for mine, known in pairs if image >= 0 and known.any()]
            self.rows.append(torch.tensor(rows, dtype=torch.float64, device=self.device).view(-1, 3))

    def _scores(self, own: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> tuple[float, float]:
        return float((own & theirs).sum() / (own | theirs).sum()), pair_boundary_f1(own, theirs, self.radius)

    def compute(self) -> dict[str, Tensor]:
        """Return ``true_box_iou`` and ``true_box_f1``; NaN without an object."""
        iou, boundary = _ordered(self.rows, 3)[:, 1:].mean(0)
        return {"true_box_iou": iou, "true_box_f1": boundary}


def pair_boundary_f1(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], radius: int) -> float:
    """Return boundary F of two H×W masks; 1 where both fill the image, whose edge is no boundary."""
    rows, columns = np.nonzero((one | other).any(1))[0], np.nonzero((one | other).any(0))[0]
    margin = radius + 1
    part = tuple(slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1) for places in (rows, columns))
    first, second = (torch.from_numpy(np.ascontiguousarray(mask[part])).long()[None] for mask in (one, other))
    score = float(boundary_f1(boundary_counts(first, second, 2, radius))[0, 1])
    return 1.0 if np.isnan(score) else score


def _overlap(
    own: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_], crowd: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return COCO's IoU of n and m masks, n×m."""
    if not len(own) or not len(theirs):
        return np.zeros((len(own), len(theirs)))
    codes = [coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))) for masks in (own, theirs)]
    overlap: npt.NDArray[np.float64] = coco_mask.iou(*codes, crowd.astype(np.uint8).tolist())
    return overlap


def _ordered(rows: list[Tensor] | Tensor, width: int) -> Tensor:
    """Return the rows of all images, sorted by image; rows of one image keep their order."""
    # A list state is one tensor after ranks are joined, and a list before.
    parts = [rows] if isinstance(rows, Tensor) else rows
    joined = torch.cat([torch.zeros(0, width, dtype=torch.float64), *[part.cpu() for part in parts]])
    return joined[torch.argsort(joined[:, 0], stable=True)]


Floats = npt.NDArray[np.float64]
Counts = dict[str, npt.NDArray[Any]]
RADII = 2  # number of radii of AF


def ap_of_images(counts: Counts, weights: Floats) -> Floats:
    """Return the average precision on images that count as often as ``weights`` says, R values in [0, 1].

    Args:
        counts: ``detections``, rows of :class:`~lsseg.metrics.InstanceMatches`; ``objects``, N×C, the number of objects
            of each class in each image; ``index``, N, the images' places in the data set.
        weights: R×N; how often each image counts in each selection.
    """
    return _over_classes(counts, lambda rows, images, objects: _precision(rows, images, objects, weights))


def af_of_images(radius: int, counts: Counts, weights: Floats) -> Floats:
    """Return AF at radius number ``radius`` of :class:`~lsseg.metrics.InstanceMatches`; see :func:`ap_of_images`."""
    return _over_classes(counts, lambda rows, images, objects: _boundary(rows, images, radius, weights))


def _over_classes(counts: Counts, score: Callable[[Floats, npt.NDArray[np.int64], Floats], Floats]) -> Floats:
    detections, objects = counts["detections"], counts["objects"]
    place = np.searchsorted(counts["index"], detections[:, 0])
    of_class = [detections[:, 1] == label for label in range(objects.shape[1])]
    by_class = [score(detections[own], place[own], objects[:, label]) for label, own in enumerate(of_class)]
    return _mean(np.stack(by_class), 0)


def _precision(rows: Floats, images: npt.NDArray[np.int64], objects: Floats, weights: Floats) -> Floats:
    """Return AP of one class, R values."""
    order = np.argsort(-rows[:, 2], kind="stable")
    rows, images = rows[order], images[order]
    what = rows[:, len(HEAD) : len(HEAD) + len(THRESHOLDS)].T.astype(np.int8)
    values = [average_precision(rows[:, 2], what, float(weight @ objects), weight[images]).mean() for weight in weights]
    return np.array(values)


def _boundary(rows: Floats, images: npt.NDArray[np.int64], radius: int, weights: Floats) -> Floats:
    """Return AF of one class, R values: the mean over thresholds of the mean over true positives."""
    steps = len(THRESHOLDS)
    found = rows[:, len(HEAD) : len(HEAD) + steps] == FOUND
    scores = rows[:, len(HEAD) + steps :].reshape(len(rows), steps, RADII)[..., radius]
    sums = np.zeros((weights.shape[1], 2, steps))
    np.add.at(sums[:, 0], images, np.where(found, scores, 0))
    np.add.at(sums[:, 1], images, found)
    drawn = np.einsum("rn,nkt->rkt", weights, sums)
    with np.errstate(invalid="ignore"):
        return _mean(drawn[:, 0] / drawn[:, 1], 1)


def _mean(values: Floats, axis: int) -> Floats:
    """Return the mean of the values that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, values, 0).sum(axis) / known.sum(axis)
    return mean
