"""Holds the equations as functions of tensors, without parameters and without state."""

from lsseg.functional.chan_vese import Delta, chan_vese_evolve
from lsseg.functional.classical import chan_vese_energy, chan_vese_segment
from lsseg.functional.curvature import curvature
from lsseg.functional.distance import signed_distance, tsdf, tsdf_loss
from lsseg.functional.heaviside import HeavisideKind, dirac, heaviside
from lsseg.functional.kernels import Kernels
from lsseg.functional.level_set import Mode, Reduction, cross_entropy_level_set, level_set_energy
from lsseg.functional.multiphase import Normalization, multiphase_evolve
from lsseg.functional.partition import competition, gaussian_log_posterior, largest_class, partition_level_sets, regions
from lsseg.functional.scores import (
    boundary_counts,
    boundary_f1,
    class_iou,
    confusion_matrix,
    label_boundary,
    overlap_counts,
    pixel_accuracy,
)

__all__ = [
    "Delta",
    "HeavisideKind",
    "Kernels",
    "Mode",
    "Normalization",
    "Reduction",
    "boundary_counts",
    "boundary_f1",
    "chan_vese_energy",
    "chan_vese_evolve",
    "chan_vese_segment",
    "class_iou",
    "competition",
    "confusion_matrix",
    "cross_entropy_level_set",
    "curvature",
    "dirac",
    "gaussian_log_posterior",
    "heaviside",
    "label_boundary",
    "largest_class",
    "level_set_energy",
    "multiphase_evolve",
    "overlap_counts",
    "partition_level_sets",
    "pixel_accuracy",
    "regions",
    "signed_distance",
    "tsdf",
    "tsdf_loss",
]
