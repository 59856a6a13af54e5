"""Starting from what another run has learnt, on other classes or with another head."""

import pickle
import warnings
from pathlib import Path

import torch
from torch import nn

from lsseg.errors import InputError

PREFIX = "network."  # of a task's network in a checkpoint


def start_from(network: nn.Module, checkpoint: str) -> None:
    """Give a network the weights of another run that have its names and shapes; a warning says which have not.

    What depends on the classes has another shape where their number is another one, and starts at random.

    Args:
        network: Changed in place.
        checkpoint: A run's checkpoint, such as ``RUN/last.ckpt``; only tensors are read from it, no code.

    Raises:
        InputError: If it cannot be read, or nothing of it fits.
    """
    if not Path(checkpoint).is_file():
        raise InputError(f"model.start {checkpoint} is not a file")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        theirs = {k.removeprefix(PREFIX): v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"model.start {checkpoint} is no checkpoint of a run, or a torn one") from error
    ours = network.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in ours and v.shape == ours[k].shape}
    learnt = [name for name, _ in network.named_parameters()]
    anew = [name for name in learnt if name not in fitting]
    if len(anew) == len(learnt):
        raise InputError(f"model.start {checkpoint} is of another network: it has no weight that fits {learnt[0]}")
    network.load_state_dict(fitting, strict=False)
    if anew:
        shown = ", ".join(anew[:3]) + (f" and {len(anew) - 3} more" if len(anew) > 3 else "")
        warnings.warn(f"model.start: {shown} of {len(learnt)} weights have no match and start at random", stacklevel=2)
