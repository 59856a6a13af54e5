"""Provides the losses, which are modules that hold weights such as λ and by default return a scalar."""

from lsseg.losses.cross_entropy import CrossEntropyLoss, WeightedCrossEntropy
from lsseg.losses.instances import ClassBalancedLoss, TSDFLoss, VelocityLoss
from lsseg.losses.level_set import CrossEntropyLevelSetLoss, LevelSetLoss
from lsseg.losses.rivals import ActiveContourLoss, BoundaryLoss, CrossEntropyPlus, LossMaxPooling

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
