"""Metrics: what accumulates over batches and ranks. :mod:`lsseg.metrics.scores` is the table of all scores.

- mIoU and pixel accuracy come from one confusion matrix over the whole split. Void pixels belong to no sum. Classes
  that are in neither truth nor prediction are left out of the mean.
- Boundary F at r px matches boundary pixels of a class within r pixels. A boundary pixel has a 4-neighbour with another
  valid label; the image's edge is no boundary, and pixels within r of void are not counted. Counts are summed over the
  split, precision and recall are formed of them, and the mean is taken over classes.
- AP is COCO's, by its evaluator; images without objects count, too. AF at r px is the boundary F of the true positives,
  mean over IoU thresholds and classes. Both depend on how well boxes are found. Mask IoU and boundary F in the objects'
  true boxes do not.
- Several processes give the same scores as one, to the last digit: no image is counted twice.
- Test scores are those of the last weights, after a fixed number of updates. Nothing is selected on the test split.
"""

from lsseg.metrics.coco import CocoAP
from lsseg.metrics.counts import BoundaryF1, CountSums, Overlap, PerImage
from lsseg.metrics.instances import AverageBoundaryF1, InstanceMatches, TrueBoxScores

__all__ = [
    "AverageBoundaryF1",
    "BoundaryF1",
    "CocoAP",
    "CountSums",
    "InstanceMatches",
    "Overlap",
    "PerImage",
    "TrueBoxScores",
]
