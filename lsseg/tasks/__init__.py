"""Defines the tasks, which hold the training step, the optimiser recipe and the scores of each method."""

from lsseg.tasks.base import Task
from lsseg.tasks.chan_vese import ChanVeseTask
from lsseg.tasks.dmls import DMLSTask
from lsseg.tasks.level_set import LevelSetLossTask
from lsseg.tasks.level_set_rcnn import LevelSetRCNNTask
from lsseg.tasks.segmentation import SegmentationTask

__all__ = ["ChanVeseTask", "DMLSTask", "LevelSetLossTask", "LevelSetRCNNTask", "SegmentationTask", "Task"]
