"""Adapts state dicts of related networks: with other steps, with or without a wrapper, or of an older version."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

# DMLS and ChanVeseNet put this before the names of the network inside them.
INNER = "network."
# A StepNorm has one such batch-norm layer for each step.
STEP = re.compile(r"\.norms\.(\d+)\.")
# The keys are names in checkpoints of older versions, the values are today's names.
RENAMED = {
    "feature_head.0.": "feature_head.convolutions.0.0.",
    "feature_head.1.": "feature_head.convolutions.0.1.",
    "feature_head.3.": "feature_head.embed.",
}
# These parts have moved into the refiner of networks that have one.
MOVED = re.compile(r"(?<!refiner\.)\b(feature_head|hyperparameters)\.")


def matched_state(state: Mapping[str, Tensor], ours: Iterable[str]) -> dict[str, Tensor]:
    """Return a state dict under the names that a related network has for the same tensors.

    Statistics of batch-norm come from the same step or, if the state dict lacks this step, from the last step before
    it. The statistics of a plain network serve every step, and a network without steps takes those of the first step.
    Names that the network does not know stay as they are, so that the caller can refuse them.

    Args:
        state: The tensors of a checkpoint, by name.
        ours: The names in the network's own state dict.

    >>> matched_state({"a.norms.0.weight": 1, "a.norms.1.weight": 2}, [f"a.norms.{k}.weight" for k in range(3)])
    {'a.norms.0.weight': 1, 'a.norms.1.weight': 2, 'a.norms.2.weight': 2}
    >>> matched_state({"a.weight": 1}, ["network.a.weight"])
    {'network.a.weight': 1}
    """
    wanted = list(ours)
    renamed = {old: new for old, new in RENAMED.items() if not any(old in key for key in wanted)}
    refiner = any("refiner." in key for key in wanted)
    theirs = _wrapped_alike({_today(key, renamed, refiner): value for key, value in state.items()}, wanted)
    by_step: dict[str, dict[int, Tensor]] = {}
    for key, value in theirs.items():
        by_step.setdefault(_plain(key), {})[_step(key)] = value
    matched = {}
    for key in wanted:
        steps = by_step.get(_plain(key))
        if steps:
            earlier = [step for step in steps if step <= _step(key)] or [min(steps)]
            matched[key] = steps[max(earlier)]
    known = {_plain(key) for key in wanted}
    return matched | {key: value for key, value in theirs.items() if _plain(key) not in known}


def steps_of(names: Iterable[str]) -> int:
    """Return how many steps have batch-norm statistics of their own; 1 if all steps share them.

    >>> steps_of(["a.norms.0.weight", "a.norms.1.weight"]), steps_of(["a.weight"])
    (2, 1)
    """
    return 1 + max((_step(key) for key in names), default=0)


def takes_relatives(network: nn.Module) -> None:
    """Let a network's ``load_state_dict`` accept the state dict of a related network (:func:`matched_state`)."""
    network.register_load_state_dict_pre_hook(_match)  # type: ignore[no-untyped-call]


def _match(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the tensors in the network's part of a state dict, in place."""
    inside = {key[len(prefix) :]: state.pop(key) for key in list(state) if key.startswith(prefix)}
    matched = matched_state(inside, network.state_dict())
    state.update({prefix + key: value for key, value in matched.items()})


def _wrapped_alike(theirs: dict[str, Tensor], ours: list[str]) -> dict[str, Tensor]:
    """Add or remove the prefix of a wrapper, if the network then knows more of the names."""
    known = {_plain(key) for key in ours}
    inner = {key.removeprefix(INNER): value for key, value in theirs.items() if key.startswith(INNER)}
    outer = {INNER + key: value for key, value in theirs.items()}
    return max((theirs, outer, inner), key=lambda names: sum(_plain(key) in known for key in names))


def _today(key: str, renamed: dict[str, str], refiner: bool) -> str:
    for old, new in renamed.items():
        if old in key:
            key = key.replace(old, new)
            break
    return MOVED.sub(r"refiner.\1.", key) if refiner else key


def _plain(key: str) -> str:
    return STEP.sub(".", key)


def _step(key: str) -> int:
    found = STEP.search(key)
    return int(found[1]) if found else 0
