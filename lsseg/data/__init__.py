"""Provides the data sets, which read or draw images and know the names and colours of their classes."""

from lsseg.data.ade20k import ADE20K
from lsseg.data.camvid import CamVid
from lsseg.data.cityscapes import Cityscapes, CityscapesInstances
from lsseg.data.coco import COCO2017, CarParts, CocoInstances
from lsseg.data.folder import FolderSegmentation
from lsseg.data.instances import InstanceData, Instances, InstanceSource
from lsseg.data.lvis import LVIS
from lsseg.data.module import DataModule, SegmentationData
from lsseg.data.nuclei import NucleiDSB2018
from lsseg.data.object_classes import CocoFolder, ObjectClasses
from lsseg.data.pascal_context import PascalContext
from lsseg.data.pennfudan import PennFudan
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source
from lsseg.data.synthetic import SyntheticInstances, SyntheticShapes
from lsseg.data.vistas import MapillaryVistas
from lsseg.data.voc import VOC2012

__all__ = [
    "ADE20K",
    "COCO2017",
    "IGNORE_INDEX",
    "LVIS",
    "VOC2012",
    "CamVid",
    "CarParts",
    "Cityscapes",
    "CityscapesInstances",
    "CocoFolder",
    "CocoInstances",
    "DataModule",
    "FilePairs",
    "FolderSegmentation",
    "InstanceData",
    "InstanceSource",
    "Instances",
    "MapillaryVistas",
    "NucleiDSB2018",
    "ObjectClasses",
    "PascalContext",
    "PennFudan",
    "SegmentationData",
    "Source",
    "SyntheticInstances",
    "SyntheticShapes",
]
