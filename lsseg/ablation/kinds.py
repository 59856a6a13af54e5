"""What the tasks of a suite predict: all of them label maps, or all instances, for one table to hold."""

import importlib
from pathlib import Path

from lsseg.ablation.spec import Run, Suite
from lsseg.errors import InputError
from lsseg.metrics.scores import can_be_cited, of_kind


def check_kinds(path: Path, suite: Suite) -> None:
    """Refuse a suite whose runs could not be compared, before the first one starts.

    Raises:
        InputError: Naming the suite's file and the variants, or the paper's number that is no score of theirs.
    """
    kinds: dict[str, str] = {}
    for variant in suite.variants:
        kind = None if variant.cite else _kind_of_task(Run(variant, suite.seeds[0]).task)
        if kind is not None:
            kinds.setdefault(kind, variant.name)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise InputError(
            f"{path}: the model of variant {first!r} is {one}, that of {second!r} {other}: no table can hold both"
        )
    for kind in kinds:
        scores = of_kind(kind)
        for variant in suite.variants:
            for score in variant.paper:
                if can_be_cited(score, scores):
                    continue
                names = ", ".join(one.name for one in scores if one.in_suites)
                raise InputError(
                    f"{path}: paper.{score} of variant {variant.name!r} is no score here; expected {names}"
                )


def _kind_of_task(name: str | None) -> str | None:
    """The kind of a task by its short name or import path; None of an unknown one, which the run itself will refuse."""
    module, _, short = (name or "").rpartition(".")
    try:
        return getattr(getattr(importlib.import_module(module or "lsseg.tasks"), short), "kind", None)
    except (ImportError, AttributeError):
        return None
