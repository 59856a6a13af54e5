"""Equations on tensors: no parameters, no state."""

from lsseg.functional.boundary import boundary_counts, label_boundary
from lsseg.functional.heaviside import HeavisideKind, dirac, heaviside
from lsseg.functional.level_set import Reduction, cross_entropy_level_set, level_set_energy
from lsseg.functional.scores import boundary_f1, class_iou, confusion_matrix, overlap_counts, pixel_accuracy

__all__ = [
    "HeavisideKind",
    "Reduction",
    "boundary_counts",
    "boundary_f1",
    "class_iou",
    "confusion_matrix",
    "cross_entropy_level_set",
    "dirac",
    "heaviside",
    "label_boundary",
    "level_set_energy",
    "overlap_counts",
    "pixel_accuracy",
]
