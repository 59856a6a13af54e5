"""Batch normalisation of a network that runs several times with the same weights.

Legend: K steps.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class StepNorm(nn.Module):
    """A batch-norm layer with one weight and bias but statistics of its own for each of K steps.

    The first step sees an image, the later ones an image and a prediction: their activations differ, and averages over
    all of them normalise none of them as training did.

    Args:
        norm: The layer that is replaced; its statistics are where each step's start.
        steps: K.
    """

    def __init__(self, norm: nn.Module, steps: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm, *(copy.deepcopy(norm) for _ in range(steps - 1))])
        for other in self.norms[1:]:
            other.weight, other.bias = norm.weight, norm.bias
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the statistics of the current step."""
        return self.norms[self.step](x)


def split_by_step(network: nn.Module, steps: int) -> None:
    """Replace every batch-norm layer of a network by a :class:`StepNorm`."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, StepNorm(child, steps))


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """All batch-norm layers of a network."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def statistics_untouched(network: nn.Module) -> Iterator[None]:
    """Inside, running statistics are updated on copies: for a forward pass that repeats another one."""
    kept = []
    for norm in batch_norms(network):
        for name, buffer in norm.named_buffers(recurse=False):
            kept.append((norm, name, buffer))
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
