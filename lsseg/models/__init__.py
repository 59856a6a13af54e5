"""Networks: what has learnable parameters."""

from lsseg.models.output import SegOutput
from lsseg.models.smp import SmpNet

__all__ = ["SegOutput", "SmpNet"]
