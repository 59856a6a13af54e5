"""Metrics: what accumulates over batches and ranks."""

from lsseg.metrics.boundary import BoundaryF1
from lsseg.metrics.overlap import Overlap
from lsseg.metrics.per_image import PerImage

__all__ = ["BoundaryF1", "Overlap", "PerImage"]
