"""What every semantic network returns."""

from typing import NamedTuple

from torch import Tensor


class SegOutput(NamedTuple):
    """Output of a semantic network.

    Attributes:
        logits: B×C×H×W scores at the input's resolution.
        steps: Whatever deep supervision and the panels of an evolution need, in order; empty for a plain network.
    """

    logits: Tensor
    steps: tuple[Tensor, ...] = ()
