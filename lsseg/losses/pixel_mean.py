"""Means over the pixels of a batch, and over those of all processes of a training on several GPUs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PixelMean(nn.Module):
    """The base of losses that are a mean over valid pixels.

    Attributes:
        over_processes: Whether the pixels are those of all processes that train together. A loss in a loop of yours
            leaves the other processes alone; the tasks set it by :func:`set_over_processes`. In training every process
            must then compute the loss.
    """

    over_processes = False

    def over_processes_too(self, mean: Tensor, valid: Callable[[], Tensor]) -> Tensor:
        """The mean over this process's valid pixels; in a training of several processes times their share."""
        return mean * share_of_pixels(valid(), self.training) if self.over_processes else mean


def set_over_processes(module: nn.Module) -> None:
    """Let every loss in a module, itself included, be a mean over the pixels of all processes."""
    for part in module.modules():
        if isinstance(part, PixelMean):
            part.over_processes = True


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean over the processes, or ``values`` itself in a single process. Every process must call it."""
    if not several_processes():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def share_of_pixels(valid: Tensor, training: bool) -> Tensor:
    """The number of this process's valid pixels by its mean over all processes; 1 in evaluation and in one process.

    DDP averages gradients, and so gives processes with few valid pixels the weight of those with many. A mean over a
    process's own pixels, times this share, becomes the mean over the pixels of all of them: that of one process with
    the whole batch. In training every process must call it.

    Args:
        valid: Bool, any shape.
        training: Whether gradients will be averaged.

    >>> share_of_pixels(torch.tensor([True, False]), training=True)
    tensor(1.)
    """
    if not (training and torch.is_grad_enabled() and several_processes()):
        return torch.ones((), device=valid.device)
    count = valid.sum().float()
    return count / mean_over_processes(count).clamp_min(1e-8)
