"""Losses: they hold weights such as λ and return a scalar."""

from lsseg.losses.combined import CrossEntropyPlus
from lsseg.losses.contour import ActiveContourLoss, BoundaryLoss
from lsseg.losses.cross_entropy import CrossEntropyLoss
from lsseg.losses.edge import ClassBalancedLoss, VelocityLoss
from lsseg.losses.level_set import CrossEntropyLevelSetLoss, LevelSetLoss
from lsseg.losses.max_pooling import LossMaxPooling
from lsseg.losses.tsdf import TSDFLoss
from lsseg.losses.weighted_cross_entropy import WeightedCrossEntropy

__all__ = [
    "ActiveContourLoss",
    "BoundaryLoss",
    "ClassBalancedLoss",
    "CrossEntropyLevelSetLoss",
    "CrossEntropyLoss",
    "CrossEntropyPlus",
    "LevelSetLoss",
    "LossMaxPooling",
    "TSDFLoss",
    "VelocityLoss",
    "WeightedCrossEntropy",
]
