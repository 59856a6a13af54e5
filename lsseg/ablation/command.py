"""``lsseg ablate`` and ``lsseg report``."""

import argparse
import fnmatch
import re
import shlex
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lsseg.ablation.kinds import check_kinds
from lsseg.ablation.runner import Outcome, Runner, check_settings
from lsseg.ablation.spec import Run, describe, expand, load_suite
from lsseg.errors import InputError
from lsseg.files import write_json

LAST_LINES = 15


def main(argv: list[str]) -> int:
    """Run ``ablate`` or ``report``; returns the exit status."""
    return _report(argv[1:]) if argv[0] == "report" else _ablate(argv[1:])


def _report(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lsseg report", description="Rebuild the table and figures of a suite from what is on disk."
    )
    parser.add_argument("folder", type=Path, help="the suite's folder, such as runs/quickstart")
    _write_report(parser.parse_args(argv).folder, Console())
    return 0


def _ablate(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lsseg ablate",
        description="Run a suite: train and test every variant with every seed, then report. Finished runs are "
        "skipped, interrupted ones continue from their last checkpoint.",
    )
    parser.add_argument("spec", type=Path, help="the suite's YAML file")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where the suite's folder goes (default: runs)")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="run only these, such as 'level_set-*'")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        help="a configuration on top of those of every run; its name becomes part of the suite's (may be repeated)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their commands")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {options.jobs}")
    for file in options.config:
        if not file.is_file():
            raise InputError(f"--config {file} is not a file")
    suite = load_suite(options.spec, tuple(options.config))
    folder = options.root / suite.name
    everything = expand(suite)
    runs = _chosen(everything, options.only)
    if options.dry_run:
        for run in runs:
            print(f"# {run.name}\nlsseg {shlex.join(run.arguments(folder / run.name))}")
        return 0
    check_kinds(options.spec, suite)
    check_settings(folder, everything)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "suite.json", describe(suite))
    console = Console()
    with Monitor(runs, console) as monitor:
        outcomes = Runner(folder, suite.name, monitor.listen).run_all(runs, options.jobs)
    _tell(outcomes, folder, console)
    if any(outcome in ("done", "skipped") for outcome in outcomes.values()):
        _write_report(folder, console)
    return 0 if all(outcome in ("done", "skipped") for outcome in outcomes.values()) else 1


def _write_report(folder: Path, console: Console) -> None:
    from lsseg.ablation.report import write_report  # only now: it needs torch and matplotlib

    write_report(folder, console)


def _chosen(runs: list[Run], patterns: list[str] | None) -> list[Run]:
    chosen = [run for run in runs if not patterns or any(fnmatch.fnmatch(run.name, p) for p in patterns)]
    if not chosen:
        raise InputError(f"--only {' '.join(patterns or [])} matches none of {', '.join(run.name for run in runs)}")
    return chosen


def _tell(outcomes: dict[str, Outcome], folder: Path, console: Console) -> None:
    skipped = sum(outcome == "skipped" for outcome in outcomes.values())
    if skipped:
        console.print(f"{skipped} finished run(s) skipped")
    for name, outcome in outcomes.items():
        if outcome == "busy":
            console.print(f"{name}: another process is at work on it", style="red")
        if outcome == "not started":
            console.print(f"{name} was not started: the run that it starts from is not finished", style="red")
        if outcome == "failed":
            log = folder / name / "log.txt"
            last = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if log.is_file() else []
            console.print(f"{name} failed; the last lines of {log}:", style="red")
            for line in last:
                console.print(f"  {line}", markup=False, highlight=False)


class Monitor:
    """Live progress: a bar for each run on a terminal, the runs' own lines elsewhere.

    Args:
        runs: The runs to be watched.
        console: Where to show them.
    """

    STEP = re.compile(r"^epoch (\d+) step (\d+)/(\d+) (.*)$")

    def __init__(self, runs: list[Run], console: Console) -> None:
        self.console = console
        self.bars: dict[str, TaskID] = {}
        self.progress: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[last]}"),
            )
            self.progress = Progress(*columns, console=console)
            self.bars = {run.name: self.progress.add_task(run.name, start=False, total=None, last="") for run in runs}

    def __enter__(self) -> "Monitor":
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress:
            self.progress.stop()

    def listen(self, name: str, line: str) -> None:
        """Show a line that a run printed."""
        step = self.STEP.match(line)
        if self.progress is None:
            if step:
                self.console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)
            return
        if not self.progress.tasks[self.bars[name]].started:
            self.progress.start_task(self.bars[name])
        if step:
            done, total, last = int(step[2]), int(step[3]), step[4]
            self.progress.update(self.bars[name], completed=done, total=total, last=last[:60])
