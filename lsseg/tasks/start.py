"""What a run takes over from another: a checkpoint to go on from, or what other classes or another head have learnt."""

import errno
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsseg.errors import InputError
from lsseg.models.state import matched_state

SHOWN = 20  # classes that fit into one line


def refuse_other_classes(checkpoint: dict[str, Any], names: Sequence[str]) -> None:
    """Compare the classes that a checkpoint was trained on with those of the data.

    Checkpoints of older versions hold no names, and are taken as they are.

    Args:
        checkpoint: Content of the checkpoint, as it was saved.
        names: The names of the data's classes.

    Raises:
        InputError: If the data has other classes, or the same ones in another order.

    >>> refuse_other_classes({"class_names": ["sky", "road"]}, ("road", "sky"))
    Traceback (most recent call last):
    lsseg.errors.InputError: the checkpoint's classes are sky, road in this order, but the data's are road, sky: list \
the data's classes in the checkpoint's order
    """
    theirs, ours = checkpoint.get("class_names"), list(names)
    if theirs is None or theirs == ours:
        return
    first, second = _shown(theirs, ours), _shown(ours, theirs)
    if sorted(theirs) == sorted(ours):
        raise InputError(
            f"the checkpoint's classes are {first} in this order, but the data's are {second}: list the data's "
            "classes in the checkpoint's order"
        )
    raise InputError(
        f"the checkpoint was trained on the classes {first}, but the data has {second}: a new run on other classes "
        "starts from it with model.start"
    )


def _shown(names: list[str], others: list[str]) -> str:
    """The names in order; of many classes only the first that differ, with their numbers."""
    if max(len(names), len(others)) <= SHOWN:
        return ", ".join(names)
    different = [i for i, name in enumerate(names) if others[i : i + 1] != [name]]
    shown = ", ".join(f"{names[i]} (number {i})" for i in different[:5])
    return f"…, {shown}, …" if shown else f"{', '.join(names[:5])}, … ({len(names)})"


def refuse_changes(changes: list[tuple[str, Any, Any]]) -> None:
    """Raise ``InputError`` for keys that a run cannot change when it goes on.

    Args:
        changes: Key, the value that the checkpoint was trained with, and the value that was given.

    >>> refuse_changes([("model.lr", 0.01, 0.02)])
    Traceback (most recent call last):
    lsseg.errors.InputError: a run that goes on keeps its model.lr (0.01, not 0.02); leave it as it was, or start a \
new run from the checkpoint with model.start
    """
    if changes:
        kept = ", ".join(f"{key} ({_value(before)}, not {_value(now)})" for key, before, now in changes)
        leave = "it as it was" if len(changes) == 1 else "them as they were"
        raise InputError(
            f"a run that goes on keeps its {kept}; leave {leave}, or start a new run from the checkpoint "
            "with model.start"
        )


def _value(value: Any) -> str:
    return "null" if value is None else str(value)


PREFIX = "network."  # of a task's network in a checkpoint
# What checkpoints of older versions hold because of defaults that have changed since, and which keys bring them back.
ADVICE = {
    "criterion.class_weights": "model.class_weights median_frequency, or model.criterion as it was trained with",
    "network.level_set.log_temperature": "model.network.temperature 0.1",
}


def start_from(network: nn.Module, checkpoint: str) -> None:
    """Give a network the weights of another run that have its names and shapes; a warning says which have not.

    What depends on the classes has another shape where their number is another one, and starts at random. A run with
    another number of steps, or of the network without DMLS or a Chan-Vese head around it, will do, too.

    Args:
        network: Changed in place.
        checkpoint: A run's checkpoint, such as ``RUN/last.ckpt``; only tensors are read from it, no code.

    Raises:
        InputError: If it cannot be read, or nothing of it fits.
    """
    state = read_checkpoint(Path(checkpoint), "model.start ")["state_dict"]
    ours = network.state_dict()
    theirs = matched_state({k.removeprefix(PREFIX): x for k, x in state.items() if k.startswith(PREFIX)}, ours)
    fitting = {k: v for k, v in theirs.items() if k in ours and v.shape == ours[k].shape}
    learnt = [name for name, _ in network.named_parameters()]
    anew = [name for name in learnt if name not in fitting]
    if len(anew) == len(learnt):
        raise InputError(f"model.start {checkpoint} is of another network: it has no weight that fits {learnt[0]}")
    network.load_state_dict(fitting, strict=False)
    if anew:
        shown = ", ".join(anew[:3]) + (f" and {len(anew) - 3} more" if len(anew) > 3 else "")
        start = "have no match and start as in a new network"
        warnings.warn(f"model.start: {shown} of {len(learnt)} weights {start}", stacklevel=2)


def read_checkpoint(path: Path, what: str = "") -> dict[str, Any]:
    """A run's checkpoint; only tensors and plain values are read from it, no code.

    Args:
        path: The file.
        what: What to call it in an error message, with a space behind it.

    Raises:
        InputError: If it is missing, torn, or holds no weights by name.
    """
    if not path.is_file():
        raise InputError(f"{what}{path} is not a file")
    broken = InputError(f"{what}{path} is no checkpoint of a run, or a torn one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        # What a disk or too little memory says tells nothing of the file; of a torn one torch makes EINVAL.
        if "allocate" in str(error) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise
        raise broken from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise broken
    return content


def matched_task_state(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A task's state dict with its network's part under the names of this network."""
    inside = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    matched = matched_state(inside, network.state_dict())
    rest = {key: value for key, value in state.items() if not key.startswith(PREFIX)}
    return rest | {PREFIX + key: value for key, value in matched.items()}


def advice(key: str) -> str:
    """Which setting gives this configuration what only the checkpoint has; nothing where none is known."""
    return f"; set {ADVICE[key]}, which was the default once" if key in ADVICE else ""
