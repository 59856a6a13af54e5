"""Data sets: what reads a disk and knows class names and colours."""

from lsseg.data.camvid import CamVid
from lsseg.data.folder import FolderSegmentation
from lsseg.data.module import SegmentationData
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source
from lsseg.data.synthetic import SyntheticShapes

__all__ = ["IGNORE_INDEX", "CamVid", "FilePairs", "FolderSegmentation", "SegmentationData", "Source", "SyntheticShapes"]
