"""Scores of a run on any selection of its test images, from what it noted of every detection.

Legend: R selections of N images, n detections, C classes, T thresholds of overlap.
"""

import numpy as np
import numpy.typing as npt

from lsseg.functional.matching import FOUND, THRESHOLDS, average_precision
from lsseg.metrics.instances import HEAD

Floats = npt.NDArray[np.float64]
RADII = (1, 2)


def score_of(score: str, detections: Floats, objects: Floats, index: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """A score on images that count as often as weights say, R, in [0, 1].

    Args:
        score: ``mask_ap``, ``af1`` or ``af2``.
        detections: Rows of :class:`~lsseg.metrics.InstanceMatches`.
        objects: N×C, objects of each class in each image.
        index: N, the images' places in the data set.
        weights: R×N.
    """
    place = np.searchsorted(index, detections[:, 0])
    by_class = []
    for label in range(objects.shape[1]):
        own = detections[:, 1] == label
        rows, images = detections[own], place[own]
        if score == "mask_ap":
            by_class.append(_precision(rows, images, objects[:, label], weights))
        else:
            by_class.append(_boundary(rows, images, RADII.index(int(score[-1])), weights))
    return _mean(np.stack(by_class), 0)


def _precision(rows: Floats, images: npt.NDArray[np.int64], objects: Floats, weights: Floats) -> Floats:
    """AP of one class, R."""
    order = np.argsort(-rows[:, 2], kind="stable")
    rows, images = rows[order], images[order]
    what = rows[:, len(HEAD) : len(HEAD) + len(THRESHOLDS)].T.astype(np.int8)
    values = [average_precision(rows[:, 2], what, float(weight @ objects), weight[images]).mean() for weight in weights]
    return np.array(values)


def _boundary(rows: Floats, images: npt.NDArray[np.int64], radius: int, weights: Floats) -> Floats:
    """AF of one class, R: the mean over thresholds of the mean over what was found."""
    steps = len(THRESHOLDS)
    found = rows[:, len(HEAD) : len(HEAD) + steps] == FOUND
    scores = rows[:, len(HEAD) + steps :].reshape(len(rows), steps, len(RADII))[..., radius]
    sums = np.zeros((weights.shape[1], 2, steps))
    np.add.at(sums[:, 0], images, np.where(found, scores, 0))
    np.add.at(sums[:, 1], images, found)
    drawn = np.einsum("rn,nkt->rkt", weights, sums)
    with np.errstate(invalid="ignore"):
        return _mean(drawn[:, 0] / drawn[:, 1], 1)


def _mean(values: Floats, axis: int) -> Floats:
    """Mean of what is a number; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, values, 0).sum(axis) / known.sum(axis)
    return mean
