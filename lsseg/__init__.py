"""Deep level-set segmentation: three differentiable level-set methods on the same backbones, data and metrics."""

from importlib.metadata import version
from typing import Any

__version__ = version("lsseg")


def __getattr__(name: str) -> Any:
    """Give what imports torch, which ``lsseg --help`` must not, when it is asked for."""
    if name == "load_run":
        from lsseg.load import load_run

        return load_run
    if name == "ChanVeseRefiner":
        from lsseg.models import ChanVeseRefiner

        return ChanVeseRefiner
    raise AttributeError(f"module 'lsseg' has no attribute {name!r}")
