"""Which detection found which object, as COCO's evaluator decides, and what follows from it.

Legend: n detections and m objects of one class in one image, T thresholds of overlap, R radii, C classes.
"""

import numpy as np
import numpy.typing as npt

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# What a detection is at a threshold: nothing was there; an object was found; or it counts for nothing (a crowd).
INVENTED, FOUND, IGNORED = 0, 1, 2
Floats = npt.NDArray[np.float64]


def match_detections(
    overlap: Floats, crowd: npt.NDArray[np.bool_], thresholds: Floats = THRESHOLDS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """COCO's greedy matching: each detection, best first, takes the object that it overlaps most.

    Args:
        overlap: n×m IoU (with a crowd: over the detection's area), detections by falling score.
        crowd: m; such an object may be taken any number of times, and only where no other is.
        thresholds: T, the least overlap.

    Returns:
        The object of every detection, T×n (-1 for none), and what the detection is, T×n.

    >>> match_detections(np.array([[0.8, 0.6], [0.7, 0.0]]), np.array([False, False]), np.array([0.5]))[0]
    array([[ 0, -1]])
    """
    count, objects = overlap.shape
    chosen = np.full((len(thresholds), count), -1, np.int64)
    what = np.full((len(thresholds), count), INVENTED, np.int8)
    for t, threshold in enumerate(thresholds):
        free = np.ones(objects, bool)
        for d in range(count):
            for candidates, kind in ((free & ~crowd, FOUND), (crowd, IGNORED)):
                usable = np.flatnonzero(candidates & (overlap[d] >= min(threshold, 1 - 1e-10)))
                if len(usable):
                    # Of equals the evaluator takes the last.
                    best = usable[::-1][np.argmax(overlap[d, usable[::-1]])]
                    chosen[t, d], what[t, d] = best, kind
                    free[best] = False
                    break
    return chosen, what


def average_precision(
    scores: Floats, what: npt.NDArray[np.int8], objects: float, weights: Floats | None = None
) -> Floats:
    """COCO's average precision of one class at every threshold: the mean of the precision envelope at 101 recalls.

    Args:
        scores: n, of all images.
        what: T×n, see :func:`match_detections`.
        objects: How many there are to be found.
        weights: n, how often the image of each detection counts (``objects`` then counts alike); None is once.

    Returns:
        T; NaN where there is nothing to be found.
    """
    if objects <= 0:
        return np.full(len(what), np.nan)
    order = np.argsort(-scores, kind="stable")
    weight = np.ones(len(scores)) if weights is None else weights[order]
    found = ((what[:, order] == FOUND) * weight).cumsum(1)
    invented = ((what[:, order] == INVENTED) * weight).cumsum(1)
    precision = found / np.maximum(found + invented, np.finfo(float).tiny)
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    result = np.zeros(len(what))
    for t in range(len(what)):
        place = np.searchsorted(found[t] / objects, RECALLS, side="left")
        result[t] = np.where(place < len(scores), np.append(envelope[t], 0.0)[np.minimum(place, len(scores))], 0).mean()
    return result
