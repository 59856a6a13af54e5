"""Runs of a suite on many machines with one file system: Ray, SLURM through submitit, and the agents of a W&B sweep.

Each starts ``lsseg run`` for one run; what is finished, can be continued, or is being worked on, stands on disk.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lsseg.ablation.runner import Outcome
from lsseg.ablation.spec import Run
from lsseg.errors import InputError
from lsseg.files import read_yaml, write_text
from lsseg.process import DIE_WITH_PARENT

# Called with a run's name and what went wrong, empty if nothing did.
Finished = Callable[[str, str], None]
LAST_CHARACTERS = 2000


@dataclass
class Unit:
    """One run, on whatever machine it is called.

    Attributes:
        arguments: Of ``lsseg``.
        folder: The one to work in.
    """

    arguments: list[str]
    folder: str

    def __call__(self) -> str:
        """Run it; returns what went wrong, empty if nothing did."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lsseg", *self.arguments],
            cwd=self.folder,
            # Within a SLURM job of this name Lightning starts its processes itself and leaves the queue to submitit.
            env={**os.environ, DIE_WITH_PARENT: str(os.getpid()), "SLURM_JOB_NAME": "interactive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # it is in the run's log.txt
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        return "" if done.returncode == 0 else done.stderr[-LAST_CHARACTERS:].strip() or f"status {done.returncode}"

    def checkpoint(self, *_: Any) -> Any:
        """For submitit, when SLURM takes the job's machine away: put it into the queue again, where it goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def with_ray(
    units: dict[str, Unit], folder: Path, resources: dict[str, Any], jobs: int | None, finished: Finished
) -> None:
    """Run on a Ray cluster: the one that RAY_ADDRESS names, or this machine alone.

    Args:
        units: By name.
        folder: The suite's.
        resources: Options of a Ray task, such as ``num_gpus`` and ``num_cpus``.
        jobs: How many at a time; None leaves it to the resources.
        finished: Told of each.

    Raises:
        InputError: If Ray is not installed, cannot be reached, or does not know a resource.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no GPU asked for: leave what is visible alone
    try:
        import ray
    except ImportError as error:
        raise InputError("--launcher ray needs Ray: pip install -e '.[ray]'") from error
    try:
        task = ray.remote(max_retries=0, **resources)(Unit.__call__)
    except (ValueError, TypeError) as error:
        raise InputError(f"--resources: {' '.join(str(error).split())}") from error
    try:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
    except (ConnectionError, RuntimeError) as error:
        raise InputError(f"no Ray cluster: {' '.join(str(error).split())}") from error
    try:
        _check_nodes(ray.nodes(), resources)
        waiting = dict(units)
        running: dict[Any, str] = {}
        while waiting or running:
            while waiting and (jobs is None or len(running) < jobs):
                name = next(iter(waiting))
                running[task.remote(waiting.pop(name))] = name
            for reference in ray.wait(list(running))[0]:
                name = running.pop(reference)
                try:
                    finished(name, ray.get(reference))
                except ray.exceptions.RayError as error:  # its machine was lost, or it was cancelled
                    finished(name, str(error))
    finally:
        ray.shutdown()


def _check_nodes(nodes: list[dict[str, Any]], resources: dict[str, Any]) -> None:
    """Say so where no machine of the cluster has what a run wants; one that can still join may."""
    wanted = {"CPU": resources.get("num_cpus", 1), "GPU": resources.get("num_gpus", 0)}
    known = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in wanted.items()) for node in known):
        sizes = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in known)
        text = f"{wanted['CPU']} CPUs and {wanted['GPU']} GPUs"
        print(f"waiting for a machine with {text} to join the cluster, which has: {sizes}", flush=True)


def with_slurm(
    units: dict[str, Unit], folder: Path, resources: dict[str, Any], jobs: int | None, finished: Finished
) -> None:
    """Submit to SLURM as one array of jobs, and wait for them.

    Args:
        units: By name.
        folder: The suite's; submitit's files go into its ``slurm``.
        resources: submitit's parameters, such as ``gpus_per_node``, ``timeout_min`` and ``slurm_partition``;
            ``cluster: local`` runs them on this machine instead.
        jobs: How many at a time; None leaves it to SLURM.
        finished: Told of each.

    Raises:
        InputError: If submitit or SLURM is not there, or does not know a resource.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("--launcher slurm needs submitit: pip install -e '.[slurm]'") from error
    for key in ("nodes", "tasks_per_node"):
        if resources.get(key, 1) != 1:
            raise InputError(
                f"--resources {key}: a run is one task on one node; it starts a process for each GPU itself"
            )
    resources = dict(resources)
    cluster = resources.pop("cluster", "slurm")
    try:
        # Every time a job's time is up it has come further: it is queued again as often as it takes.
        executor = submitit.AutoExecutor(folder / "slurm", cluster, slurm_max_num_timeout=10_000)
        limit = {"slurm_array_parallelism": jobs} if jobs and cluster == "slurm" else {}
        executor.update_parameters(**limit, **resources)
        with executor.batch():
            submitted = {name: executor.submit(unit) for name, unit in units.items()}
    except (NameError, ValueError, RuntimeError, AssertionError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"--launcher slurm: {' '.join(str(error).split())}") from error
    print(f"submitted: {', '.join(f'{name} {job.job_id}' for name, job in submitted.items())}", flush=True)
    names = {job: name for name, job in submitted.items()}
    for job in submitit.helpers.as_completed(list(names)):
        try:
            finished(names[job], job.result())
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            finished(names[job], str(error)[-LAST_CHARACTERS:])


ENGINES = {"ray": with_ray, "slurm": with_slurm}


@dataclass
class Engine:
    """Where runs go.

    Attributes:
        name: ``ray`` or ``slurm``.
        resources: What each run gets, in the engine's own words.
        jobs: How many at a time; None leaves it to the resources.
    """

    name: str
    resources: dict[str, Any]
    jobs: int | None


def run_elsewhere(
    engine: Engine, folder: Path, runs: list[Run], suite: list[str], console: Console
) -> dict[str, Outcome]:
    """Run everything that is not finished.

    Args:
        engine: Where.
        folder: The suite's.
        runs: Of the suite.
        suite: Arguments of ``lsseg run`` that name the suite.
        console: Told of each run when it ends.

    Returns:
        What became of each run, by name.
    """
    outcomes: dict[str, Outcome] = {}
    units = {}
    for run in runs:
        if (folder / run.name / "test.json").is_file():
            outcomes[run.name] = "skipped"
        else:
            point = json.dumps({"variant": run.variant.name, "seed": run.seed})
            units[run.name] = Unit(["run", *suite, "--point", point], str(Path.cwd()))

    def finished(name: str, problem: str) -> None:
        outcomes[name] = "done" if not problem and (folder / name / "test.json").is_file() else "failed"
        console.print(f"{name}: {outcomes[name]}", highlight=False)
        if problem and not (folder / name / "log.txt").is_file():  # it did not even start
            console.print(f"  {problem.splitlines()[-1]}", style="red", markup=False, highlight=False, soft_wrap=True)

    if units:
        ENGINES[engine.name](units, folder, engine.resources, engine.jobs, finished)
    return {run.name: outcomes[run.name] for run in runs}


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

    from lsseg.callbacks.loggers import logged_in

    if not logged_in():
        raise InputError(f"--create needs a login: `wandb login`, or WANDB_API_KEY; {path} is written all the same")
    try:
        sweep = wandb.sweep(read_yaml(path), project=PROJECT)
    except (wandb.Error, ValueError) as error:
        raise InputError(f"W&B did not take {path}: {' '.join(str(error).split())}") from error
    return f"wandb agent --project {PROJECT} {sweep}"
