"""Measuring time and memory for ``lsseg bench``."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lsseg.errors import InputError


def in_turn(cases: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every case, all of them in turn in every round, after one round of warm-up.

    A GPU is waited for at the end of several calls, as in a training, where it works while the next are prepared.
    """
    calls = 5 if device == "cuda" else 1
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, run in cases.items():
            _wait(device)
            start = time.perf_counter()
            for _ in range(calls):
                run()
            _wait(device)
            if turn:
                seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def pairwise(ours: list[float], theirs: list[float]) -> list[float]:
    """Ratios of the rounds."""
    return [a / b for a, b in zip(ours, theirs, strict=False)]


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that a run takes at its peak above what is there before it; on a CPU of the whole process (Linux)."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def peaks(cases: Iterable[str], memory_of: Callable[[str, Any], int], argv: list[str], options: Any) -> dict[str, int]:
    """Peak memory of every case: on a CPU in a process of its own, on a GPU, which counts its bytes, in this one."""
    if options.device == "cuda":
        return {name: memory_of(name, options) for name in cases}
    return {name: in_fresh_process(argv, name) for name in cases}


def in_fresh_process(argv: list[str], case: str) -> int:
    """What ``lsseg bench ARGV --memory-of CASE`` prints: one case's peak memory, with nothing else in the process."""
    command = [sys.executable, "-P", "-m", "lsseg", "bench", *argv, "--memory-of", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"the memory of {case} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout))


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _status(key: str) -> int:
    """A figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status does not tell {key}")
