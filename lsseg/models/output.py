"""What every semantic network returns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lsseg.errors import ArgumentError


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
    """A network's output as ``SegOutput``.

    Args:
        output: What it returned: ``SegOutput``; or the logits alone, as smp's networks return them; or a mapping with
            ``out`` (and, in training, ``aux``), as torchvision's do.
        network: Which one.
        image: What it was given, B×3×H×W.
        num_classes: C.

    Raises:
        InputError: If it is none of these, or the logits are not B×C×H×W; names the network.
    """
    name = type(network).__name__
    if isinstance(output, Tensor):
        output = SegOutput(output)
    elif isinstance(output, Mapping) and isinstance(output.get("out"), Tensor):
        output = SegOutput(output["out"], auxiliary=(output["aux"],) if "aux" in output else ())
    elif not isinstance(output, SegOutput):
        raise ArgumentError(
            f"network {name} must return SegOutput(logits), logits alone, or a mapping with out, "
            f"not {type(output).__name__}"
        )
    expected = (len(image), num_classes, *image.shape[-2:])
    if output.logits.shape != expected:
        found = tuple(output.logits.shape)
        raise ArgumentError(f"network {name} returned logits {found}; expected {expected}: B×C×H×W")
    return output


def made(network: Callable[[int], nn.Module], num_classes: int) -> nn.Module:
    """A network that is given as it is, or made for C classes."""
    return network if isinstance(network, nn.Module) else network(num_classes)
