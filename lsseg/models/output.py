"""What every semantic network returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lsseg.errors import InputError


class Step(NamedTuple):
    """One step of a network that refines its own prediction.

    Attributes:
        logits: B×C×H×W scores of the network.
        refined: B×C×H×W scores after the step's level-set evolution; None where there is none.
    """

    logits: Tensor
    refined: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """The step's prediction."""
        return self.logits if self.refined is None else self.refined


class SegOutput(NamedTuple):
    """Output of a semantic network.

    Attributes:
        logits: B×C×H×W scores at the input's resolution.
        steps: The steps towards them, first to last, for deep supervision and panels; empty for a plain network.
        features: B×D×h×w features that the scores were read from, for likelihoods; a network may leave them out.
        feature_stride: s: a feature stands for s×s pixels, h = ⌈H/s⌉ and w = ⌈W/s⌉.
        auxiliary: Further B×C×H×W scores that a training supervises like the logits, such as those of each scale.
    """

    logits: Tensor
    steps: tuple[Step, ...] = ()
    features: Tensor | None = None
    feature_stride: int = 1
    auxiliary: tuple[Tensor, ...] = ()


def checked(output: Any, network: object, image: Tensor, num_classes: int) -> SegOutput:
    """A network's output, if it is what every network has to return.

    Raises:
        InputError: If it is not, naming the network.
    """
    name = type(network).__name__
    if not isinstance(output, SegOutput):
        raise InputError(f"network {name} must return SegOutput(logits), not {type(output).__name__}")
    expected = (len(image), num_classes, *image.shape[-2:])
    if output.logits.shape != expected:
        raise InputError(f"network {name} returned logits {tuple(output.logits.shape)}; expected {expected}: B×C×H×W")
    return output


def made(network: Callable[[int], nn.Module], num_classes: int) -> nn.Module:
    """A network that is given as it is, or made for C classes."""
    return network if isinstance(network, nn.Module) else network(num_classes)
