"""Runs the experiments of a suite, each in its own process, goes on if some of them fail, and shows their progress."""

import fcntl
import itertools
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lsseg.ablation.spec import Run
from lsseg.errors import InputError
from lsseg.files import write_json, write_text
from lsseg.process import DIE_WITH_PARENT

Outcome = Literal["done", "skipped", "failed", "busy", "not started"]
Listener = Callable[[str, str], None]
# W&B counts a run with these environment variables as part of a sweep.
OF_AN_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
SECONDS = 1.0  # between attempts to take a lock
STALE = ("metrics.jsonl", "metrics.csv", "test_images.npz")
NOTE = "note: "  # begins what the runner itself says of a run


class Gpus:
    """Lends this machine's GPUs to at most ``jobs`` runs at a time.

    Args:
        per_run: Number of GPUs for each run.
        jobs: Number of runs at a time; runs share GPUs if the machine has too few. None means as many runs as can have
            GPUs of their own, or one run on a machine without GPUs.

    Raises:
        InputError: If the machine has fewer GPUs than ``per_run``; ``per_run=1`` is allowed without GPUs.
    """

    def __init__(self, per_run: int = 1, jobs: int | None = None) -> None:
        known = visible_gpus()
        groups = [known[i : i + per_run] for i in range(0, len(known) - per_run + 1, per_run)]
        if not groups and (known or per_run > 1):
            raise InputError(f"--gpus-per-run is {per_run}, but this machine has {len(known)} GPUs")
        self.jobs = jobs or max(1, len(groups))
        self._free: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        for number in range(self.jobs):
            self._free.put(groups[number % len(groups)] if groups else [])

    @contextmanager
    def lend(self) -> Iterator[list[str]]:
        """Wait for the GPUs of one run and yield their indices or UUIDs; a machine without GPUs yields none."""
        own = self._free.get()
        try:
            yield own
        finally:
            self._free.put(own)


def visible_gpus() -> list[str]:
    """Return this machine's NVIDIA GPUs, or only those in CUDA_VISIBLE_DEVICES if it is set."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        try:
            query = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")
            allowed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return []
    names = [name.strip() for name in re.split(r"[,\n]", allowed)]
    # CUDA ignores a negative number or an empty entry, and everything after it.
    return list(dict.fromkeys(itertools.takewhile(lambda name: name and not name.startswith("-"), names)))


class Runner:
    """Runs experiments in a suite's folder.

    Args:
        folder: The suite's folder, which has a folder with the name of each run.
        suite: Name of the suite, for W&B.
        gpus: Lends GPUs to the runs; if None, each run sees all visible GPUs.
        listener: Called with a run's name and each line of its output, and with the runner's messages about the run.
        wait: Whether to wait for another process that is at work on a run, instead of leaving the run to it.
        agent_of: Name of the run that W&B's agent asks for, if an agent started this process.
    """

    def __init__(
        self,
        folder: Path,
        suite: str,
        gpus: Gpus | None,
        listener: Listener,
        wait: bool = False,
        agent_of: str | None = None,
    ) -> None:
        self.folder, self.suite, self.listener = folder, suite, listener
        self.gpus, self.wait, self.agent_of = gpus, wait, agent_of
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()

    def run_all(self, runs: list[Run], jobs: int) -> dict[str, Outcome]:
        """Run all runs that are not finished, ``jobs`` at a time.

        Returns:
            The outcome of each run, by name.

        Raises:
            KeyboardInterrupt: If the user interrupts; the running experiments are stopped first.
        """
        with ThreadPoolExecutor(jobs) as pool:
            futures: dict[str, Future[Outcome]] = {}
            for run in runs:
                # The run to start from was submitted before this one, so waiting for it cannot block for ever.
                before = futures.get(run.start.name) if run.start else None
                futures[run.name] = pool.submit(self._run, run, jobs, before)
            try:
                return {name: future.result() for name, future in futures.items()}
            except BaseException:
                self._stopping.set()
                for future in futures.values():
                    future.cancel()
                for process in list(self._processes):
                    process.terminate()
                raise

    def _run(self, run: Run, jobs: int, before: "Future[Outcome] | None") -> Outcome:
        folder = self.folder / run.name
        if before is not None:
            before.result()
        if run.start is not None and not (self.folder / run.start.name / "test.json").is_file():
            return "not started"
        if self._stopping.is_set():
            return "failed"
        folder.mkdir(parents=True, exist_ok=True)
        locks = self.folder / ".locks"  # deleting a run folder must not release its lock
        locks.mkdir(exist_ok=True)
        with self._lock(locks / run.name, run.name) as lock:
            if lock is None:
                return "busy"
            if (folder / "test.json").is_file():
                return "skipped"
            write_json(folder / "run.json", run.fingerprint())
            if self.gpus is None:
                return self._start(run, folder, jobs, lock, [])
            with self.gpus.lend() as gpus:
                return self._start(run, folder, jobs, lock, gpus)

    @contextmanager
    def _lock(self, path: Path, name: str) -> Iterator[int | None]:
        """Lock a run and yield the lock's file descriptor, or None if another process holds the lock.

        The kernel releases the lock when the last process that holds the descriptor has closed it or has ended.
        """
        with path.open("w") as file:
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not self.wait or self._stopping.is_set():
                        yield None
                        return
                    if not told:
                        self.listener(name, f"{NOTE}waiting for another process that is at work on {name}")
                        told = True
                    self._stopping.wait(SECONDS)
            yield file.fileno()

    def _start(self, run: Run, folder: Path, jobs: int, lock: int, gpus: list[str]) -> Outcome:
        arguments = [
            *run.arguments(folder),
            f"--wandb.group={self.suite}",
            f"--wandb.tags={json.dumps([run.variant.name])}",
        ]
        environment = {**os.environ, DIE_WITH_PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        if run.name != self.agent_of:
            for key in OF_AN_AGENT:
                environment.pop(key, None)
        checkpoint = self._checkpoint(folder, run.name)
        if checkpoint is not None:
            arguments.append(f"--ckpt_path={checkpoint}")
        else:  # the new run must not contain the logs of one that was interrupted before its first checkpoint
            for name in STALE:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "wandb", ignore_errors=True)
        arguments.append(f"--wandb.id={_wandb_id(folder, environment.get('WANDB_RUN_ID'))}")
        threads = str(max(1, _cores() // jobs))
        environment.setdefault("OMP_NUM_THREADS", threads)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lsseg", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(lock,),  # the run's process keeps the lock even if the runner has ended
        )
        self._processes.add(process)
        if self._stopping.is_set():  # the interrupt came before the process was added
            process.terminate()
        assert process.stdout is not None
        with process, (folder / "log.txt").open("a") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                self.listener(run.name, line.rstrip())
        self._processes.discard(process)
        return "done" if process.returncode == 0 and (folder / "test.json").is_file() else "failed"

    def _checkpoint(self, folder: Path, name: str) -> Path | None:
        """Return an interrupted run's ``last.ckpt``; if it is missing or damaged, return ``best.ckpt`` or None."""
        from lsseg.tasks.start import read_checkpoint  # imported only here, because it imports torch

        for path in (folder / "last.ckpt", folder / "best.ckpt"):
            if path.exists():
                try:
                    read_checkpoint(path)
                except InputError as error:
                    self.listener(name, f"{NOTE}{error}; it is not used")
                    continue
                except (OSError, RuntimeError):  # the run's own process will report an error of the disk or of memory
                    pass
                return path
        return None


def check_settings(folder: Path, runs: list[Run]) -> None:
    """Refuse a suite's folder that holds a run with other settings, because the table would mix both.

    Raises:
        InputError: If a run has other settings; the message names the run folder.
    """
    for run in runs:
        made_with = _read_json(folder / run.name / "run.json")
        if made_with is not None and made_with != json.loads(json.dumps(run.fingerprint())):
            raise InputError(
                f"{folder / run.name} holds a run with other settings: delete it, or choose another folder with --root"
            )


def _cores() -> int:
    """Return the number of CPU cores that this process may use; on a cluster the machine can have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wandb_id(folder: Path, given: str | None) -> str:
    """Return the run's W&B id, which a continued run keeps; an agent's id ``given`` replaces it."""
    path = folder / "wandb-id"
    if given or not path.is_file():
        write_text(path, given or uuid.uuid4().hex[:8])
    return path.read_text()


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


class Monitor:
    """Shows live progress: a bar for each run on a terminal, and the runs' own progress lines elsewhere.

    Args:
        runs: The runs to watch.
        console: The console that shows them.
    """

    STEP = re.compile(r"^epoch (\d+) step (\d+)/(\d+) (.*)$")

    def __init__(self, runs: list[Run], console: Console) -> None:
        self.console = console
        self.bars: dict[str, TaskID] = {}
        self.progress: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[last]}", markup=False),
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
        """Show the runner's notes and a run's progress lines; other lines only start the clock of the run's bar."""
        step = self.STEP.match(line)
        if line.startswith(NOTE) or (step and self.progress is None):
            self.console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
        if self.progress is None:
            return
        if not self.progress.tasks[self.bars[name]].started:
            self.progress.start_task(self.bars[name])
        if step:
            done, total, last = int(step[2]), int(step[3]), step[4]
            self.progress.update(self.bars[name], completed=done, total=total, last=last[:60])
