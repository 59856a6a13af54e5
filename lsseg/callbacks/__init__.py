"""What draws, saves and watches a run."""

from lsseg.callbacks.checkpoints import BestCheckpoint, PeriodicCheckpoint, WholeCheckpoints
from lsseg.callbacks.jsonl import JsonlLogger
from lsseg.callbacks.official import OfficialScores
from lsseg.callbacks.panels import Panels
from lsseg.callbacks.predictions import SavePredictions
from lsseg.callbacks.progress import PlainProgress, progress_bar
from lsseg.callbacks.results import TestResults
from lsseg.callbacks.step_seed import StepSeed
from lsseg.callbacks.stopwatch import Stopwatch
from lsseg.callbacks.wandb import WandbRun

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
