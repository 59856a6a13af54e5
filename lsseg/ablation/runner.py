"""Runs the experiments of a suite, each in a process of its own, and lives with those that fail."""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lsseg.ablation.spec import Run
from lsseg.errors import InputError
from lsseg.files import write_json

Outcome = Literal["done", "skipped", "failed", "busy"]
Listener = Callable[[str, str], None]
DIE_WITH_PARENT = "LSSEG_DIE_WITH_PARENT"
STALE = ("metrics.jsonl", "metrics.csv", "test_images.npz")


class Runner:
    """Runs experiments in a suite's folder.

    Args:
        folder: The suite's folder; a run's folder has its name.
        suite: Name of the suite, for W&B.
        listener: Called with a run's name and each line it prints.
    """

    def __init__(self, folder: Path, suite: str, listener: Listener) -> None:
        self.folder, self.suite, self.listener = folder, suite, listener
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()

    def run_all(self, runs: list[Run], jobs: int) -> dict[str, Outcome]:
        """Run everything that is not finished, ``jobs`` at a time.

        Returns:
            What became of each run, by name.

        Raises:
            InputError: If a finished or interrupted run was made with other settings.
            KeyboardInterrupt: If interrupted; the running experiments are stopped first.
        """
        for run in runs:
            self._check_settings(run)
        with ThreadPoolExecutor(jobs) as pool:
            futures = {run.name: pool.submit(self._run, run, jobs) for run in runs}
            try:
                return {name: future.result() for name, future in futures.items()}
            except BaseException:
                self._stopping.set()
                for future in futures.values():
                    future.cancel()
                for process in list(self._processes):
                    process.terminate()
                raise

    def _check_settings(self, run: Run) -> None:
        path = self.folder / run.name / "run.json"
        made_with = _read_json(path)
        if made_with is not None and made_with != json.loads(json.dumps(run.fingerprint())):
            raise InputError(
                f"{path.parent} holds a run with other settings: delete it, or choose another folder with --root"
            )

    def _run(self, run: Run, jobs: int) -> Outcome:
        folder = self.folder / run.name
        if self._stopping.is_set():
            return "failed"
        if (folder / "test.json").is_file():
            return "skipped"
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / ".lock") as free:
            if not free:
                return "busy"
            write_json(folder / "run.json", run.fingerprint())
            return self._start(run, folder, jobs)

    def _start(self, run: Run, folder: Path, jobs: int) -> Outcome:
        arguments = [*run.arguments(folder), f"--wandb.group={self.suite}", f"--wandb.tags=[{run.variant.name}]"]
        checkpoint = folder / "last.ckpt"
        if checkpoint.is_file():
            arguments.append(f"--ckpt_path={checkpoint}")
        else:  # interrupted before the first checkpoint: what it logged is no part of the run that starts now
            for name in STALE:
                (folder / name).unlink(missing_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment = {**os.environ, DIE_WITH_PARENT: "1", "PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", threads)
        process = subprocess.Popen(
            [sys.executable, "-m", "lsseg", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._processes.add(process)
        assert process.stdout is not None
        with (folder / "log.txt").open("a") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                self.listener(run.name, line.rstrip())
        status = process.wait()
        self._processes.discard(process)
        return "done" if status == 0 and (folder / "test.json").is_file() else "failed"


def die_with_parent() -> None:
    """In a process that a runner started: have the kernel end it when the runner is gone, however it went."""
    if os.environ.get(DIE_WITH_PARENT) and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this process is the only one at work on a run; the kernel frees the lock however the holder ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
