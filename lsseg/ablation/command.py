"""Implements the commands ``lsseg ablate``, ``lsseg run`` and ``lsseg report``."""

import argparse
import fnmatch
import json
import re
import shlex
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console

from lsseg.ablation.engines import ENGINES, Engine, create_sweep, run_elsewhere, write_sweep
from lsseg.ablation.runner import Gpus, Monitor, Outcome, Runner, check_settings
from lsseg.ablation.spec import Run, Suite, check_kinds, describe, expand, load_suite
from lsseg.arguments import Arguments
from lsseg.errors import InputError
from lsseg.files import write_json

LAST_LINES = 15
GOOD = ("done", "skipped")
Check = Callable[[dict[str, list[str]]], None]


def main(argv: list[str], check: Check | None = None) -> int:
    """Run ``ablate``, ``run`` or ``report`` and return the exit status.

    Args:
        argv: The command and its arguments.
        check: Function that ``ablate`` calls before the runs start. It gets the arguments of one unfinished run of each
            variant, by variant, and raises ``InputError`` if it cannot read them.
    """
    if argv[0] == "ablate":
        return _ablate(argv[1:], check or (lambda runs: None))
    return {"run": _run, "report": _report}[argv[0]](argv[1:])


def _report(argv: list[str]) -> int:
    parser = Arguments(
        prog="lsseg report", description="Rebuild the table and figures of a suite from what is on disk."
    )
    parser.add_argument("folder", type=Path, help="the suite's folder, such as runs/quickstart")
    _write_report(parser.parse_args(argv).folder, Console(markup=False))
    return 0


def _ablate(argv: list[str], check: Check) -> int:
    options = _ablate_options(argv)
    suite, folder = _read(options)
    everything = expand(suite)
    runs = _chosen(everything, options.only)
    check(
        {
            run.variant.name: run.arguments(folder / run.name)
            for run in runs
            if not (folder / run.name / "test.json").is_file()
        }
    )
    check_kinds(options.spec, suite)
    if options.dry_run:
        for run in runs:
            print(f"# {run.name}\nlsseg {shlex.join(run.arguments(folder / run.name))}")
        return 0
    check_settings(folder, everything)
    console = Console(markup=False)
    resources = _resources(options.resources)
    local = options.launcher == "local" and not options.sweep
    gpus = Gpus(options.gpus_per_run or 1, options.jobs) if local else None
    write_json(folder / "suite.json", describe(suite))
    if options.sweep:
        path = write_sweep(folder / "sweep.yaml", suite.name, runs, _again(options))
        agent = (
            create_sweep(path)
            if options.create
            else f"wandb sweep {path}   # this command prints the `wandb agent` command to start"
        )
        console.print(f"{path}: {len(runs)} runs\n{agent}", highlight=False, soft_wrap=True)
        return 0
    if gpus is not None:
        with Monitor(runs, console) as monitor:
            runner = Runner(folder, suite.name, gpus, monitor.listen)
            outcomes = runner.run_all(runs, gpus.jobs)
    else:
        engine = Engine(options.launcher, resources, options.jobs)
        outcomes = run_elsewhere(engine, folder, runs, _again(options), console)
    _tell(outcomes, folder, console)
    if any(outcome in GOOD for outcome in outcomes.values()):
        _write_report(folder, console)
    return _status(outcomes)


def _ablate_options(argv: list[str]) -> argparse.Namespace:
    parser = _parser(
        "lsseg ablate",
        "Run a suite: train and test every variant with every seed, then report. Finished runs are skipped, "
        "interrupted ones continue from their last checkpoint.",
    )
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="run only these, such as 'level_set-*'")
    parser.add_argument(
        "--jobs",
        type=int,
        help="number of runs at a time (default: as many as can have GPUs of their own, or 1 without GPUs; a larger "
        "number shares the GPUs; with another launcher the default is no limit)",
    )
    parser.add_argument("--gpus-per-run", type=int, help="number of this machine's GPUs for each run (default: 1)")
    parser.add_argument(
        "--launcher", choices=["local", *ENGINES], default="local", help="what starts the runs (default: local)"
    )
    parser.add_argument(
        "--resources",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="resources of each run, under the launcher's names: num_gpus=1 num_cpus=8 (Ray); gpus_per_node=1 "
        "timeout_min=600 slurm_partition=long (submitit)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their commands")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="run nothing, but write a W&B sweep of the same runs into the suite's folder",
    )
    parser.add_argument("--create", action="store_true", help="with --sweep: also register the sweep with W&B")
    options = parser.parse_args(argv)
    for key in ("jobs", "gpus_per_run"):
        value = getattr(options, key)
        if value is not None and not value > 0:
            raise InputError(f"--{key.replace('_', '-')} must be more than 0, not {value:g}")
    if options.resources and options.launcher == "local":
        raise InputError("--resources needs --launcher ray or slurm; on this machine use --gpus-per-run")
    if options.launcher != "local" and options.gpus_per_run:
        raise InputError("--gpus-per-run needs --launcher local; with another launcher use --resources")
    if options.sweep and options.launcher != "local":
        raise InputError("--sweep runs nothing, so it cannot be used with --launcher")
    if options.sweep and (options.jobs or options.gpus_per_run):
        raise InputError("--sweep runs nothing, so it cannot be used with --jobs or --gpus-per-run")
    if options.create and not options.sweep:
        raise InputError("--create needs --sweep, because it registers the sweep")
    return options


def _run(argv: list[str]) -> int:
    parser = _parser(
        "lsseg run",
        "Do one run of a suite as `lsseg ablate` does it; W&B's agents and clusters use this command. If the run "
        "starts from another run that is not finished, that run is done first.",
    )
    parser.add_argument(
        "--point",
        required=True,
        metavar="JSON",
        help='the run, as JSON such as \'{"variant": "level_set", "seed": 0}\'',
    )
    options = parser.parse_args(argv)
    suite, folder = _read(options)
    run = _at(suite, options.point)
    chain = [run]
    while chain[0].start is not None:
        chain.insert(0, chain[0].start)
    check_kinds(options.spec, suite)
    check_settings(folder, chain)
    write_json(folder / "suite.json", describe(suite))
    # The runner lends no GPU, because the agent or the cluster has already chosen the GPUs.
    runner = Runner(folder, suite.name, None, lambda _, line: print(line, flush=True), wait=True, agent_of=run.name)
    outcomes = runner.run_all(chain, 1)
    _tell(outcomes, folder, Console(markup=False))
    return _status(outcomes)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every command that reads a suite."""
    parser = Arguments(prog=name, description=description)
    parser.add_argument("spec", type=Path, help="the suite's YAML file")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where the suite's folder goes (default: runs)")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        help="a configuration file that overrides those of every run; its name becomes part of the suite's name (may "
        "be repeated)",
    )
    return parser


def _read(options: argparse.Namespace) -> tuple[Suite, Path]:
    """Return the suite and its folder."""
    for file in options.config:
        if not file.is_file():
            raise InputError(f"--config {file} is not a file")
    suite = load_suite(options.spec, tuple(options.config))
    return suite, options.root / suite.name


def _again(options: argparse.Namespace) -> list[str]:
    """Return arguments with which a process started in any folder reads the same suite and uses its folder."""
    configs = [f"--config={file.resolve()}" for file in options.config]
    return [str(options.spec.resolve()), f"--root={options.root.resolve()}", *configs]


def _resources(pairs: list[str]) -> dict[str, Any]:
    resources = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InputError(f"--resources {pair} must have the form KEY=VALUE")
        resources[key] = _number(value)
    return resources


def _number(text: str) -> int | float | str:
    """Return a resource's value as a number; text that is not a plain number, such as 12:00:00, stays text."""
    for kind, pattern in ((int, r"0|[1-9]\d*"), (float, r"\d*\.\d+")):
        if re.fullmatch(pattern, text):
            return kind(text)
    return text


def _at(suite: Suite, point: str) -> Run:
    """Return the run that a point names."""
    runs = {(run.variant.name, run.seed): run for run in expand(suite)}
    try:
        wanted: Any = json.loads(point)
        return runs[wanted["variant"], wanted["seed"]]
    except (ValueError, TypeError, KeyError):
        variants, seeds = (list(dict.fromkeys(part)) for part in zip(*runs, strict=True))
        raise InputError(
            f"--point {point} names no run of the suite; it must be JSON with a variant (one of {', '.join(variants)}) "
            f"and a seed (one of {', '.join(map(str, seeds))})"
        ) from None


def _write_report(folder: Path, console: Console) -> None:
    from lsseg.ablation.report import write_report  # imported only here, because it needs torch and matplotlib

    try:
        write_report(folder, console)
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error  # the error of a full disk names no file


def _chosen(runs: list[Run], patterns: list[str] | None) -> list[Run]:
    chosen = [run for run in runs if not patterns or any(fnmatch.fnmatch(run.name, p) for p in patterns)]
    names = [run.name for run in runs]
    lost = [pattern for pattern in patterns or [] if not fnmatch.filter(names, pattern)]
    if lost:
        similar = [name for pattern in lost for name in get_close_matches(pattern, names, 3)] or names[:6]
        others = f" and {len(names) - len(similar)} others" if len(similar) < len(names) else ""
        raise InputError(
            f"--only {' '.join(lost)} matches no run of the suite; its runs are {', '.join(similar)}{others}"
        )
    return chosen


def _status(outcomes: dict[str, Outcome]) -> int:
    return 0 if all(outcome in GOOD for outcome in outcomes.values()) else 1


def _tell(outcomes: dict[str, Outcome], folder: Path, console: Console) -> None:
    skipped = sum(outcome == "skipped" for outcome in outcomes.values())
    if skipped:
        console.print(f"{skipped} finished run(s) were skipped")
    for name, outcome in outcomes.items():
        if outcome == "busy":
            console.print(f"{name}: another process is at work on it", style="red")
        if outcome == "not started":
            console.print(f"{name} was not started: the run that it starts from is not finished", style="red")
        if outcome == "failed":
            log = folder / name / "log.txt"
            if not log.is_file():
                said = f"{name} failed and left no log: it did not start, or {log.parent} was deleted"
                console.print(said, style="red")
                continue
            last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            console.print(f"{name} failed; the last lines of {log}:", style="red")
            for line in last:
                console.print(f"  {line}", highlight=False)
