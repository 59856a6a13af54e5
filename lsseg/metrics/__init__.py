"""Metrics: what accumulates over batches and ranks."""

from lsseg.metrics.boundary import BoundaryF1
from lsseg.metrics.coco import CocoAP
from lsseg.metrics.counts import CountSums, PerImage
from lsseg.metrics.instances import AverageBoundaryF1, InstanceMatches, TrueBoxScores
from lsseg.metrics.overlap import Overlap

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
