"""Deep level-set segmentation: three differentiable level-set methods on the same backbones, data and metrics."""

from importlib.metadata import version

__version__ = version("lsseg")
