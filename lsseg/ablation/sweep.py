"""A suite as a W&B sweep: its agents, on any machines, take the runs that `lsseg ablate` would do."""

from pathlib import Path
from typing import Any

import yaml

from lsseg.ablation.spec import Run
from lsseg.errors import InputError
from lsseg.files import write_text

PROJECT = "lsseg"


def write_sweep(path: Path, name: str, runs: list[Run], suite: list[str]) -> Path:
    """Write a sweep's YAML.

    Args:
        path: Where to.
        name: Of the sweep: the suite's.
        runs: What its agents take, each of them once.
        suite: Arguments of ``lsseg run`` that name the suite.

    Returns:
        The path.
    """
    text = yaml.safe_dump(describe_sweep(name, runs, suite), sort_keys=False, allow_unicode=True, width=110)
    write_text(path, f"# Written by lsseg ablate --sweep, for agents that see these folders.\n{text}")
    return path


def describe_sweep(name: str, runs: list[Run], suite: list[str]) -> dict[str, Any]:
    """A sweep's configuration.

    Raises:
        InputError: If the runs are no grid of variants and seeds, which is what W&B can enumerate.
    """
    variants = list(dict.fromkeys(run.variant.name for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    if len(runs) != len(variants) * len(seeds):
        raise InputError("--sweep takes whole variants: choose with --only 'VARIANT-*', not single seeds")
    return {
        "name": name,
        "project": PROJECT,
        "method": "grid",
        "parameters": {"variant": {"values": variants}, "seed": {"values": seeds}},
        # One argument of JSON: under DDP only the first process could ask W&B for the values.
        "command": ["${env}", "${interpreter}", "-m", "lsseg", "run", *suite, "--point", "${args_json}"],
    }


def create_sweep(path: Path) -> str:
    """Register a sweep with W&B.

    Returns:
        The command that starts an agent.

    Raises:
        InputError: If nobody is logged in, or W&B refuses it.
    """
    import wandb  # only now: it takes a second

    from lsseg.callbacks.wandb import logged_in

    if not logged_in():
        raise InputError(f"--create needs a login: `wandb login`, or WANDB_API_KEY; {path} is written all the same")
    try:
        sweep = wandb.sweep(yaml.safe_load(path.read_text()), project=PROJECT)
    except (wandb.Error, ValueError) as error:
        raise InputError(f"W&B did not take {path}: {' '.join(str(error).split())}") from error
    return f"wandb agent --project {PROJECT} {sweep}"
