"""Provides the metrics, which accumulate over batches and ranks; :mod:`lsseg.metrics.scores` lists all scores.

- mIoU and pixel accuracy come from one confusion matrix over the whole split. Void pixels belong to no sum. Classes
  that are in neither truth nor prediction are left out of the mean.
- Boundary F at r px matches boundary pixels of a class within r pixels. A boundary pixel has a 4-neighbour with another
  valid label. The image's edge is no boundary, and pixels within r of void are not counted. Counts are summed over the
  split, precision and recall are computed from the sums, and the mean is taken over classes.
- AP is COCO's and is computed by its evaluator. Images without objects count, too. AF at r px is the boundary F of the
  true positives, averaged over IoU thresholds and classes. AP and AF depend on how well boxes are found. Mask IoU and
  boundary F in the objects' true boxes do not.
- Several processes give the same scores as one, to the last digit, because no image is counted twice.
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
