"""Means over the processes of a training on several GPUs."""

import torch
from torch import Tensor


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_processes(values: Tensor) -> Tensor:
    """Of tensors of one shape; ``values`` itself in a single process. Every process must call it."""
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
    count = valid.sum().float()
    if not (training and torch.is_grad_enabled() and several_processes()):
        return torch.ones_like(count)
    return count / mean_over_processes(count).clamp_min(1e-8)
