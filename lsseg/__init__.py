"""Provides three differentiable methods of deep level-set segmentation on the same backbones, data and metrics."""

from importlib.metadata import version
from typing import Any

__version__ = version("lsseg")


def __getattr__(name: str) -> Any:
    """Import the names that need torch only when they are used, so that ``lsseg --help`` does not import torch."""
    if name == "load_run":
        from lsseg.load import load_run

        return load_run
    if name == "ChanVeseRefiner":
        from lsseg.models import ChanVeseRefiner

        return ChanVeseRefiner
    raise AttributeError(f"module 'lsseg' has no attribute {name!r}")
