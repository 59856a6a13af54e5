"""Scores of a run on any selection of its test images, from what it noted of every detection.

Legend: R selections of N images, n detections, C classes, T thresholds of overlap.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lsseg.functional.instances import FOUND, THRESHOLDS, average_precision
from lsseg.metrics.instances import HEAD

Floats = npt.NDArray[np.float64]
Counts = dict[str, npt.NDArray[Any]]
RADII = 2  # of AF


def ap_of_images(counts: Counts, weights: Floats) -> Floats:
    """Average precision on images that count as often as weights say, R, in [0, 1].

    Args:
        counts: ``detections``, rows of :class:`~lsseg.metrics.InstanceMatches`; ``objects``, N×C, objects of each class
            in each image; ``index``, N, the images' places in the data set.
        weights: R×N.
    """
    return _over_classes(counts, lambda rows, images, objects: _precision(rows, images, objects, weights))


def af_of_images(radius: int, counts: Counts, weights: Floats) -> Floats:
    """AF at one of the radii of :class:`~lsseg.metrics.InstanceMatches`; otherwise as :func:`ap_of_images`."""
    return _over_classes(counts, lambda rows, images, objects: _boundary(rows, images, radius, weights))


def _over_classes(counts: Counts, score: Callable[[Floats, npt.NDArray[np.int64], Floats], Floats]) -> Floats:
    detections, objects = counts["detections"], counts["objects"]
    place = np.searchsorted(counts["index"], detections[:, 0])
    of_class = [detections[:, 1] == label for label in range(objects.shape[1])]
    by_class = [score(detections[own], place[own], objects[:, label]) for label, own in enumerate(of_class)]
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
    scores = rows[:, len(HEAD) + steps :].reshape(len(rows), steps, RADII)[..., radius]
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
