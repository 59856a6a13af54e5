"""Contains the networks: all modules with learnable parameters."""

from lsseg.models.chan_vese import ChanVeseNet
from lsseg.models.deeplab import DeepLabLargeFOV, DeepLabV2
from lsseg.models.dmls import DMLS
from lsseg.models.fcn import DFCN, FCN
from lsseg.models.level_set_rcnn import LevelSetRCNN
from lsseg.models.multiphase import MultiphaseLevelSet
from lsseg.models.output import SegOutput, Step, checked, made
from lsseg.models.refiner import ChanVeseRefiner, Refined
from lsseg.models.smp import SmpNet

__all__ = [
    "DFCN",
    "DMLS",
    "FCN",
    "ChanVeseNet",
    "ChanVeseRefiner",
    "DeepLabLargeFOV",
    "DeepLabV2",
    "LevelSetRCNN",
    "MultiphaseLevelSet",
    "Refined",
    "SegOutput",
    "SmpNet",
    "Step",
    "checked",
    "made",
]
