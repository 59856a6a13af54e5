"""Reads checkpoints of other runs, to resume a run or to start a network from their weights."""

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

SHOWN = 20  # classes listed in one message


def refuse_other_classes(checkpoint: dict[str, Any], names: Sequence[str]) -> None:
    """Compare the classes that a checkpoint was trained on with those of the data.

    Checkpoints of older versions hold no names, and are not checked.

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
        f"the checkpoint was trained on the classes {first}, but the data has {second}: to train on other "
        "classes, start a new run from it with model.start"
    )


def _shown(names: list[str], others: list[str]) -> str:
    """List the names in order; of many classes, list only the first that differ, with their numbers."""
    if max(len(names), len(others)) <= SHOWN:
        return ", ".join(names)
    different = [i for i, name in enumerate(names) if others[i : i + 1] != [name]]
    shown = ", ".join(f"{names[i]} (number {i})" for i in different[:5])
    return f"…, {shown}, …" if shown else f"{', '.join(names[:5])}, … ({len(names)})"


def refuse_changes(changes: list[tuple[str, Any, Any]]) -> None:
    """Raise an ``InputError`` for keys that a resumed run cannot change, if there are any.

    Args:
        changes: For each key, its name, the value that the checkpoint was trained with, and the given value.

    >>> refuse_changes([("model.lr", 0.01, 0.02)])
    Traceback (most recent call last):
    lsseg.errors.InputError: a resumed run must keep model.lr (0.01, not 0.02): leave it unchanged, or start a \
new run from the checkpoint with model.start
    """
    if changes:
        kept = ", ".join(f"{key} ({_value(before)}, not {_value(now)})" for key, before, now in changes)
        leave = "it unchanged" if len(changes) == 1 else "them unchanged"
        raise InputError(
            f"a resumed run must keep {kept}: leave {leave}, or start a new run from the checkpoint with model.start"
        )


def _value(value: Any) -> str:
    return "null" if value is None else str(value)


PREFIX = "network."  # of the names of a task's network in a checkpoint
# Older versions had other defaults. Their checkpoints hold these tensors, which need the settings given here.
ADVICE = {
    "criterion.class_weights": "model.class_weights to median_frequency (the default in older versions), or "
    "model.criterion to the loss of the checkpoint's training",
    "network.level_set.log_temperature": "model.network.temperature to 0.1 (the default in older versions)",
}


def start_from(network: nn.Module, checkpoint: str) -> None:
    """Copy the weights of another run with matching names and shapes into a network; warn about all other weights.

    Layers that depend on the number of classes do not match if that number differs, and keep their initial values.
    The other run may have another number of steps, or the same network without DMLS or a Chan-Vese head around it.

    Args:
        network: The network, which is changed in place.
        checkpoint: A run's checkpoint, such as ``RUN/last.ckpt``; only tensors are read from it, no code.

    Raises:
        InputError: If the checkpoint cannot be read, or none of its weights fits.
    """
    state = read_checkpoint(Path(checkpoint), "model.start ")["state_dict"]
    ours = network.state_dict()
    theirs = matched_state({k.removeprefix(PREFIX): x for k, x in state.items() if k.startswith(PREFIX)}, ours)
    fitting = {k: v for k, v in theirs.items() if k in ours and v.shape == ours[k].shape}
    learnt = [name for name, _ in network.named_parameters()]
    anew = [name for name in learnt if name not in fitting]
    if len(anew) == len(learnt):
        raise InputError(f"model.start {checkpoint} is from another network: it has no weight that fits {learnt[0]}")
    network.load_state_dict(fitting, strict=False)
    if anew:
        shown = ", ".join(anew[:3]) + (f" and {len(anew) - 3} more" if len(anew) > 3 else "")
        start = "are not in the checkpoint with this shape, and start as in a new network"
        warnings.warn(f"model.start: {len(anew)} of {len(learnt)} weights {start}: {shown}", stacklevel=2)


def read_checkpoint(path: Path, what: str = "") -> dict[str, Any]:
    """Return a run's checkpoint; only tensors and plain values are read from it, no code.

    Args:
        path: Path of the file.
        what: Text before the path in an error message, with a space at its end.

    Raises:
        InputError: If the file is missing or incomplete, or does not hold weights by name.
    """
    if not path.is_file():
        raise InputError(f"{what}{path} is not a file")
    broken = InputError(f"{what}{path} is not a checkpoint of a run, or is damaged")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        # Errors of the disk or of memory do not show that the file is bad. For an incomplete file torch raises EINVAL.
        if "allocate" in str(error) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise
        raise broken from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise broken
    return content


def matched_task_state(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return a task's state dict in which the tensors of its network have the names of this network."""
    inside = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    matched = matched_state(inside, network.state_dict())
    rest = {key: value for key, value in state.items() if not key.startswith(PREFIX)}
    return rest | {PREFIX + key: value for key, value in matched.items()}


def advice(key: str) -> str:
    """Name the setting that adds a tensor that only the checkpoint has; return an empty text if none is known."""
    return f"; set {ADVICE[key]}" if key in ADVICE else ""
