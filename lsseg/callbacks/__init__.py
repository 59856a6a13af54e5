"""Defines the loggers, and the callbacks that draw, save and measure a run."""

from lsseg.callbacks.checkpoints import BestCheckpoint, PeriodicCheckpoint, WholeCheckpoints
from lsseg.callbacks.loggers import JsonlLogger, WandbRun
from lsseg.callbacks.official import OfficialScores
from lsseg.callbacks.panels import Panels
from lsseg.callbacks.predictions import SavePredictions
from lsseg.callbacks.progress import PlainProgress, StepSeed, Stopwatch, progress_bar
from lsseg.callbacks.results import TestResults

__all__ = [
    "BestCheckpoint",
    "JsonlLogger",
    "OfficialScores",
    "Panels",
    "PeriodicCheckpoint",
    "PlainProgress",
    "SavePredictions",
    "StepSeed",
    "Stopwatch",
    "TestResults",
    "WandbRun",
    "WholeCheckpoints",
    "progress_bar",
]
