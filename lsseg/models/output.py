"""Defines the output of every semantic network."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lsseg.errors import ArgumentError


class Step(NamedTuple):
    """Holds one step of a network that refines its own prediction.

    Attributes:
        logits: B×C×H×W scores of the network.
        refined: B×C×H×W scores after the step's level-set evolution; None without an evolution.
    """

    logits: Tensor
    refined: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """Return the step's prediction: the refined scores if there are any, else the network's."""
        return self.logits if self.refined is None else self.refined


class SegOutput(NamedTuple):
    """Holds the output of a semantic network.

    Attributes:
        logits: B×C×H×W scores at the input's resolution.
        steps: The steps towards the logits, first to last, for deep supervision and panels; empty for a plain network.
        features: B×D×h×w features from which the scores are computed, for likelihoods; None if a network has none.
        feature_stride: Stride s of the features: each covers s×s pixels, so that h = ⌈H/s⌉ and w = ⌈W/s⌉.
        auxiliary: Further B×C×H×W scores that training supervises like the logits, such as those of each scale.
    """

    logits: Tensor
    steps: tuple[Step, ...] = ()
    features: Tensor | None = None
    feature_stride: int = 1
    auxiliary: tuple[Tensor, ...] = ()


def checked(output: Any, network: object, image: Tensor, num_classes: int) -> SegOutput:
    """Check a network's output and return it as ``SegOutput``.

    Args:
        output: The network's output: ``SegOutput``; or the logits alone, as smp's networks return them; or a mapping
            with ``out`` (and, in training, ``aux``), as torchvision's networks return it.
        network: The network, which the error message names.
        image: The network's input, B×3×H×W.
        num_classes: Number of classes, C.

    Raises:
        InputError: If the output is none of these, or the logits are not B×C×H×W.
    """
    name = type(network).__name__
    if isinstance(output, Tensor):
        output = SegOutput(output)
    elif isinstance(output, Mapping) and isinstance(output.get("out"), Tensor):
        output = SegOutput(output["out"], auxiliary=(output["aux"],) if "aux" in output else ())
    elif not isinstance(output, SegOutput):
        raise ArgumentError(
            f"network {name} must return SegOutput(logits), logits alone, or a mapping with the key out, "
            f"not {type(output).__name__}"
        )
    expected = (len(image), num_classes, *image.shape[-2:])
    if output.logits.shape != expected:
        found = tuple(output.logits.shape)
        raise ArgumentError(f"network {name} returned logits {found}; expected {expected}: B×C×H×W")
    return output


def made(network: Callable[[int], nn.Module], num_classes: int) -> nn.Module:
    """Return a network: ``network`` itself if it is one, else what it makes for C classes."""
    return network if isinstance(network, nn.Module) else network(num_classes)
