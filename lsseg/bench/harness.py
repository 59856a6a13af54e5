"""What a benchmark is, and how the time and the memory of its cases are measured, side by side, and shown."""

import argparse
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from lsseg.errors import InputError

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # where CUDA might be is no news here

from torch.utils.benchmark.utils.timer import timer  # noqa: E402  waits for a GPU

Case = Callable[[], Any]


class Benchmark(NamedTuple):
    """Cases that are compared.

    Attributes:
        about: What is compared, in a few words.
        cases: What is shown of each case, by its name.
        baseline: The case that the others are multiples of.
        make: A case, of its name and the options, as a function without arguments.
        options: Options beside those that all have, with their defaults; a tuple makes as many numbers, a list any.
        least: The least value of an option, and of each of several numbers; 1 where nothing is said.
        most: The largest value.
        choices: What an option may be, where that is little.
        on_gpu: Options that ``lsseg bench all`` gives on a GPU.
        title: What stands over the table, with the options' names in braces.
        repeats: Timed rounds, if nothing else is asked for.
        gpu_cases: The cases that there are on a GPU only, because a CPU has nothing else.
        late: The cases that are timed after the others, for what they leave in memory would make those behind faster.
        memory: Whether memory is measured.
        small: Options of a first call, before memory is measured: what is allocated at first use is no case's cost.
        more: What else is measured, of the options and the seconds of all cases; it prints, and returns figures.
    """

    about: str
    cases: dict[str, str]
    baseline: str
    make: Callable[[str, Any], Case]
    options: dict[str, Any]
    title: str
    least: dict[str, float] = {}
    most: dict[str, float] = {}
    choices: dict[str, tuple[str, ...]] = {}
    on_gpu: tuple[str, ...] = ()
    repeats: int = 3
    gpu_cases: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()
    memory: bool = True
    small: Callable[[Any], dict[str, Any]] | None = None
    more: Callable[[Any, dict[str, list[float]]], dict[str, Any]] | None = None

    def run(self, options: Any, argv: list[str]) -> dict[str, Any]:
        """Measure all cases and print a table; returns the figures."""
        names = [name for name in self.cases if options.device == "cuda" or name not in self.gpu_cases]
        seconds: dict[str, list[float]] = {}
        for late in (False, True):
            cases = {name: self.make(name, options) for name in names if (name in self.late) == late}
            seconds |= in_turn(cases, options.repeats, options.device)
            del cases
        ratios = {name: ratio(seconds[name], seconds[self.baseline]) for name in names}
        peaks = {name: self._peak(name, options, argv) for name in names} if self.memory else {}
        self._show(seconds, ratios, peaks, options)
        figures = {"seconds": seconds, "time_ratios": ratios, "peak_bytes": peaks}
        return figures | (self.more(options, seconds) if self.more else {})

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser."""
        parser.add_argument("--repeats", type=int, default=self.repeats, help="timed rounds")
        parser.add_argument("--memory-of", choices=self.cases, help=argparse.SUPPRESS)
        for name, default in self.options.items():
            several = isinstance(default, tuple | list)
            kind, count = type(default[0] if several else default), len(default) if isinstance(default, tuple) else "+"
            more: dict[str, Any] = {"nargs": count} if several else {"choices": self.choices.get(name)}
            parser.add_argument(f"--{name}", type=kind, default=default, help=f"default: {default}", **more)

    def check(self, options: Any) -> None:
        """Raise ``InputError`` for an option below its least value."""
        for name, default in self.options.items():
            given, least = getattr(options, name), self.least.get(name, 1)
            values, most = given if isinstance(given, tuple | list) else [given], self.most.get(name, 1e9)
            if not isinstance(default, str) and not all(least <= value <= most for value in values):
                raise InputError(f"--{name} must be from {least:g} to {most:g}, not {given}")
            if name == "shape" and (len(given) < 3 or given[1] < 2):
                raise InputError(f"--shape must be B, C and one size or more, C at least 2, not {given}")

    def memory_of(self, name: str, options: Any) -> int:
        """Peak memory of one case in this process, in bytes."""
        if self.small is not None:
            self.make(name, argparse.Namespace(**vars(options) | self.small(options)))()
        return peak_memory(self.make(name, options), options.device)

    def _peak(self, name: str, options: Any, argv: list[str]) -> int:
        """On a CPU in a process of its own; a GPU counts its bytes."""
        return self.memory_of(name, options) if options.device == "cuda" else in_fresh_process(argv, name)

    def _show(self, seconds: Any, ratios: dict[str, float], peaks: dict[str, int], options: Any) -> None:
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
        table = Table(title=f"{self.title.format(**vars(options))}, {where}")
        for column in ("", "ms", "time", *(("peak MB", "memory") if peaks else ())):
            table.add_column(column, justify="right" if column else "left")
        for name, factor in ratios.items():
            row = [self.cases[name], f"{1e3 * statistics.median(seconds[name]):.4g}", multiple(factor)]
            if peaks:
                least = peaks[self.baseline]
                row += [f"{peaks[name] / 1e6:.0f}", multiple(peaks[name] / least) if least else "–"]
            table.add_row(*row)
        Console(highlight=False).print(table)
        Console(highlight=False).print("ms: the median of the rounds; time: the median of each round's own ratio.")


def multiple(factor: float) -> str:
    """A factor, or the inverse of one below 1.

    >>> multiple(1.143), multiple(0.0625), multiple(0)
    ('1.14×', '1/16.0', '0×')
    """
    return f"{factor:.2f}×" if factor >= 1 else f"1/{1 / factor:.{1 if factor < 0.5 else 2}f}" if factor else "0×"


def in_turn(cases: Mapping[str, Case], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of every case, all of them in turn in every round, after a warm-up.

    A GPU is waited for at the end of several calls, as in a training, where it works while the next are prepared; its
    kernels are compiled, and its algorithms chosen, in the first calls.
    """
    calls, warm = (5, 2) if device == "cuda" else (1, 1)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(-warm, repeats):
        for name, run in cases.items():
            start = timer()
            for _ in range(calls):
                run()
            if turn >= 0:
                seconds[name].append((timer() - start) / calls)
    return seconds


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_memory(run: Case, device: str = "cpu") -> int:
    """Bytes that a run takes at its peak above what is there before it; on a CPU of the whole process (Linux)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def in_fresh_process(argv: list[str], case: str) -> int:
    """What ``lsseg bench ARGV --memory-of CASE`` prints: one case's peak memory, with nothing else in the process."""
    command = [sys.executable, "-P", "-m", "lsseg", "bench", *argv, "--memory-of", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"the memory of {case} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout))


def _status(key: str) -> int:
    """A figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status does not tell {key}")
