"""Losses: they hold weights such as λ and return a scalar."""

from lsseg.losses.cross_entropy import CrossEntropyLoss
from lsseg.losses.edge import ClassBalancedLoss, VelocityLoss
from lsseg.losses.level_set import CrossEntropyLevelSetLoss, LevelSetLoss
from lsseg.losses.tsdf import TSDFLoss
from lsseg.losses.weighted_cross_entropy import WeightedCrossEntropy

__all__ = [
    "ClassBalancedLoss",
    "CrossEntropyLevelSetLoss",
    "CrossEntropyLoss",
    "LevelSetLoss",
    "TSDFLoss",
    "VelocityLoss",
    "WeightedCrossEntropy",
]
