"""What a picture of a Chan-Vese evolution shows."""

from typing import NamedTuple

from torch import Tensor

from lsseg.models.hyperparameters import Numbers


class EvolvingObject(NamedTuple):
    """One object (or class) of an image and how its level set moves.

    Attributes:
        name: What to call it.
        box: The object's part of the image: left, top, right, bottom edge in pixels.
        phi: φ⁰ and φ after every iteration, each R×S on a grid over the box.
        features: F, D×R×S, or on a coarser grid; None of an evolution that has none.
        numbers: The object's hyperparameters, as for one object; None where they are set by hand.
    """

    name: str
    box: tuple[float, float, float, float]
    phi: list[Tensor]
    features: Tensor | None
    numbers: Numbers | None
