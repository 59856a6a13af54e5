"""Metrics: what accumulates over batches and ranks."""

from lsseg.metrics.boundary import BoundaryF1
from lsseg.metrics.coco import CocoAP
from lsseg.metrics.instances import AverageBoundaryF1, InstanceMatches, TrueBoxScores
from lsseg.metrics.overlap import Overlap
from lsseg.metrics.per_image import PerImage

__all__ = ["AverageBoundaryF1", "BoundaryF1", "CocoAP", "InstanceMatches", "Overlap", "PerImage", "TrueBoxScores"]
