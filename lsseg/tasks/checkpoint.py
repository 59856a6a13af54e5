"""What a checkpoint and the run that loads it must have in common."""

from collections.abc import Sequence
from typing import Any

from lsseg.errors import InputError
from lsseg.tasks.optimizer import Recipe

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


def refuse_other_optimizer(checkpoint: dict[str, Any], recipe: Recipe, sizes: list[int]) -> None:
    """Compare the state of the optimiser in a checkpoint with the recipe of the run that goes on from it.

    Args:
        checkpoint: Content of the checkpoint, as it was saved.
        recipe: The optimiser's, as this run has it.
        sizes: How many parameters each group of this run's optimiser has.

    Raises:
        InputError: If the state would overrule the recipe, or does not fit the optimiser.
    """
    for state in checkpoint.get("optimizer_states", ()):
        groups = state["param_groups"]
        found = {"optimizer": "adamw" if "betas" in groups[0] else "sgd", "lr": groups[0].get("initial_lr")}
        found |= {key: groups[0].get(key) for key in ("momentum", "weight_decay")}
        ours = {"optimizer": recipe.name, "lr": recipe.lr, "weight_decay": recipe.weight_decay}
        if found["optimizer"] == recipe.name == "sgd":
            ours["momentum"] = recipe.momentum
        refuse_changes([(f"model.{key}", found[key], x) for key, x in ours.items() if found[key] not in (None, x)])
        if [len(group["params"]) for group in groups] != sizes:
            raise InputError(
                "the checkpoint's training cannot be continued, for its optimiser has other groups of parameters "
                "(of another version, or another model.new_layers); start a new one from it with model.start"
            )


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
