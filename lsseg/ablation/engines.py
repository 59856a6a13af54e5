"""Runs a suite on many machines that share a file system: with Ray, with SLURM through submitit, or with W&B agents.

Each of them starts ``lsseg run`` for one run. Files in the suite's folder say whether a run is finished, can be
continued, or is locked by another process.
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

# An engine calls this function with a run's name and an error text, which is empty if there was no error.
Finished = Callable[[str, str], None]
LAST_CHARACTERS = 2000


@dataclass
class Unit:
    """Starts one run on the machine on which it is called.

    Attributes:
        arguments: Arguments of ``lsseg``.
        folder: Working folder of the process.
    """

    arguments: list[str]
    folder: str

    def __call__(self) -> str:
        """Run ``lsseg`` and return an empty text or, if it failed, the end of its stderr or its exit status."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lsseg", *self.arguments],
            cwd=self.folder,
            # In a SLURM job of this name Lightning starts its own processes, and submitit alone requeues the job.
            env={**os.environ, DIE_WITH_PARENT: str(os.getpid()), "SLURM_JOB_NAME": "interactive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the run's log.txt holds this output
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        return "" if done.returncode == 0 else done.stderr[-LAST_CHARACTERS:].strip() or f"status {done.returncode}"

    def checkpoint(self, *_: Any) -> Any:
        """Return the job that submitit queues when SLURM ends this one early; the new job continues the run."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def with_ray(
    units: dict[str, Unit], folder: Path, resources: dict[str, Any], jobs: int | None, finished: Finished
) -> None:
    """Run the units on the Ray cluster that RAY_ADDRESS names or, if it is not set, on this machine alone.

    Args:
        units: Units by the names of their runs.
        folder: The suite's folder, which Ray does not need.
        resources: Options of a Ray task, such as ``num_gpus`` and ``num_cpus``.
        jobs: Number of runs at a time; None leaves it to the resources.
        finished: Called when a run ends.

    Raises:
        InputError: If Ray is not installed, cannot be reached, or does not know a resource.
    """
    # Without this variable Ray would hide all GPUs from a task that asks for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("--launcher ray needs Ray: pip install -e '.[ray]'") from error
    try:
        task = ray.remote(max_retries=0, **resources)(Unit.__call__)
    except (ValueError, TypeError) as error:
        raise InputError(f"Ray refuses --resources: {' '.join(str(error).split())}") from error
    try:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
    except (ConnectionError, RuntimeError) as error:
        raise InputError(f"the Ray cluster cannot be reached: {' '.join(str(error).split())}") from error
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
                except ray.exceptions.RayError as error:  # the machine was lost, or the task was cancelled
                    finished(name, str(error))
    finally:
        ray.shutdown()


def _check_nodes(nodes: list[dict[str, Any]], resources: dict[str, Any]) -> None:
    """Print a notice if no machine of the cluster has the resources of a run, which then waits for such a machine."""
    wanted = {"CPU": resources.get("num_cpus", 1), "GPU": resources.get("num_gpus", 0)}
    known = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in wanted.items()) for node in known):
        sizes = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in known)
        text = f"{wanted['CPU']} CPUs and {wanted['GPU']} GPUs"
        said = f"no machine of the cluster has {text}; waiting for one to join. Machines of the cluster: {sizes}"
        print(said, flush=True)


def with_slurm(
    units: dict[str, Unit], folder: Path, resources: dict[str, Any], jobs: int | None, finished: Finished
) -> None:
    """Submit the units to SLURM as one array of jobs, and wait for them.

    Args:
        units: Units by the names of their runs.
        folder: The suite's folder; submitit's files go into its folder ``slurm``.
        resources: submitit's parameters, such as ``gpus_per_node``, ``timeout_min`` and ``slurm_partition``;
            ``cluster=local`` runs the jobs on this machine instead.
        jobs: Number of runs at a time; None leaves it to SLURM.
        finished: Called when a run ends.

    Raises:
        InputError: If submitit or SLURM is missing, or a resource is unknown or gives a run several tasks or nodes.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("--launcher slurm needs submitit: pip install -e '.[slurm]'") from error
    for key in ("nodes", "tasks_per_node"):
        if resources.get(key, 1) != 1:
            raise InputError(
                f"--resources {key} must be 1, because a run is one task on one node and starts one process for each "
                "GPU itself"
            )
    resources = dict(resources)
    cluster = resources.pop("cluster", "slurm")
    try:
        # A job that reaches its time limit has made progress, so it is queued again as often as necessary.
        executor = submitit.AutoExecutor(folder / "slurm", cluster, slurm_max_num_timeout=10_000)
        limit = {"slurm_array_parallelism": jobs} if jobs and cluster == "slurm" else {}
        executor.update_parameters(**limit, **resources)
        with executor.batch():
            submitted = {name: executor.submit(unit) for name, unit in units.items()}
    except (NameError, ValueError, RuntimeError, AssertionError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"submitit could not submit the runs: {' '.join(str(error).split())}") from error
    print(
        f"submitted the runs {', '.join(f'{name} (job {job.job_id})' for name, job in submitted.items())}", flush=True
    )
    names = {job: name for name, job in submitted.items()}
    for job in submitit.helpers.as_completed(list(names), poll_frequency=1):  # 10 s would add up
        try:
            finished(names[job], job.result())
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            finished(names[job], str(error)[-LAST_CHARACTERS:])


ENGINES = {"ray": with_ray, "slurm": with_slurm}


@dataclass
class Engine:
    """Describes where runs are started.

    Attributes:
        name: ``ray`` or ``slurm``.
        resources: Resources of each run, under the engine's own names.
        jobs: Number of runs at a time; None leaves it to the engine.
    """

    name: str
    resources: dict[str, Any]
    jobs: int | None


def run_elsewhere(
    engine: Engine, folder: Path, runs: list[Run], suite: list[str], console: Console
) -> dict[str, Outcome]:
    """Run all runs that are not finished.

    Args:
        engine: The engine that starts the runs.
        folder: The suite's folder.
        runs: Runs of the suite.
        suite: Arguments of ``lsseg run`` that name the suite.
        console: Shows the outcome of each run when it ends.

    Returns:
        The outcome of each run, by name.
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
        if problem and not (folder / name / "log.txt").is_file():  # the run did not start
            console.print(f"  {problem.splitlines()[-1]}", style="red", highlight=False, soft_wrap=True)

    if units:
        ENGINES[engine.name](units, folder, engine.resources, engine.jobs, finished)
    return {run.name: outcomes[run.name] for run in runs}


PROJECT = "lsseg"


def write_sweep(path: Path, name: str, runs: list[Run], suite: list[str]) -> Path:
    """Write the YAML file of a W&B sweep.

    Args:
        path: Path of the file.
        name: Name of the sweep, which is the suite's.
        runs: Runs of the sweep; the agents do each run once.
        suite: Arguments of ``lsseg run`` that name the suite.

    Returns:
        The path.
    """
    text = yaml.safe_dump(describe_sweep(name, runs, suite), sort_keys=False, allow_unicode=True, width=110)
    write_text(path, f"# lsseg ablate --sweep wrote this file. Its agents must run where these folders exist.\n{text}")
    return path


def describe_sweep(name: str, runs: list[Run], suite: list[str]) -> dict[str, Any]:
    """Return a sweep's configuration.

    Raises:
        InputError: If the runs are not all combinations of their variants and seeds, as W&B's grid needs.
    """
    variants = list(dict.fromkeys(run.variant.name for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    if len(runs) != len(variants) * len(seeds):
        raise InputError(
            "--sweep needs every seed of each chosen variant: use --only 'VARIANT-*' instead of single seeds"
        )
    return {
        "name": name,
        "project": PROJECT,
        "method": "grid",
        "parameters": {"variant": {"values": variants}, "seed": {"values": seeds}},
        # The values are one argument of JSON, because under DDP only the first process could ask W&B for them.
        "command": ["${env}", "${interpreter}", "-m", "lsseg", "run", *suite, "--point", "${args_json}"],
    }


def create_sweep(path: Path) -> str:
    """Register a sweep with W&B.

    Returns:
        The command that starts an agent.

    Raises:
        InputError: If nobody is logged in to W&B, or W&B refuses the sweep.
    """
    import wandb  # imported only here, because it takes a second

    from lsseg.callbacks.loggers import logged_in

    if not logged_in():
        raise InputError(f"--create needs a login: use `wandb login` or set WANDB_API_KEY; {path} was written anyway")
    try:
        sweep = wandb.sweep(read_yaml(path), project=PROJECT)
    except (wandb.Error, ValueError) as error:
        raise InputError(f"W&B refused the sweep {path}: {' '.join(str(error).split())}") from error
    return f"wandb agent --project {PROJECT} {sweep}"
