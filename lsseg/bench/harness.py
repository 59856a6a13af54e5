"""Defines a benchmark, measures the time and the memory of its cases side by side, and shows them."""

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
from torch.profiler import ProfilerActivity, profile

from lsseg.errors import InputError
from lsseg.process import memory

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # It would warn that there is no CUDA runtime.

from torch.utils.benchmark.utils.timer import timer  # noqa: E402  waits for a GPU

Case = Callable[[], Any]
CUDA = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]


class Benchmark(NamedTuple):
    """Measures cases and compares them.

    Attributes:
        about: A short description of what is compared.
        cases: The text that the table shows for each case, by the case's name.
        baseline: The case by which the time and the memory of the others are divided.
        make: Makes a case, a function without arguments, from its name and the options.
        options: The benchmark's own options, with defaults. A tuple takes as many numbers as it has, a list any number.
        least: The least value of an option, and of each of several numbers; 1 for options that are not listed.
        most: The largest value, in the same form; 10⁹ for options that are not listed.
        choices: The allowed values of options that have few.
        on_gpu: Options that ``lsseg bench all`` gives on a GPU.
        title: The title of the table, with the options' names in braces.
        repeats: Default number of timed rounds.
        gpu_cases: Cases for a GPU only; on a CPU another case already measures the same operations.
        late: Cases that are timed after the others, because the memory that they leave would make later cases faster.
        memory: Whether memory is measured.
        small: Makes the options of a small first call, so that what is allocated at first use is not measured.
        more: Measures and prints more, from the options and the seconds of all cases, and returns further figures.
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
        """Measure all cases, print a table, and return the figures."""
        names = [name for name in self.cases if options.device == "cuda" or name not in self.gpu_cases]
        seconds: dict[str, list[float]] = {}
        kernels: dict[str, float] = {}
        for late in (False, True):
            cases = {name: self.make(name, options) for name in names if (name in self.late) == late}
            seconds |= in_turn(cases, options.repeats, options.device)
            if options.device == "cuda":
                kernels |= {name: kernel_seconds(case) for name, case in cases.items()}
            del cases
        ratios = {name: ratio(seconds[name], seconds[self.baseline]) for name in names}
        peaks = {name: self._peak(name, options, argv) for name in names} if self.memory else {}
        self._show(seconds, kernels, ratios, peaks, options)
        figures = {"seconds": seconds, "time_ratios": ratios, "peak_bytes": peaks, "kernel_seconds": kernels}
        return figures | (self.more(options, seconds) if self.more else {})

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser."""
        parser.add_argument("--repeats", type=int, default=self.repeats, help="number of timed rounds")
        parser.add_argument("--memory-of", choices=self.cases, help=argparse.SUPPRESS)
        for name, default in self.options.items():
            several = isinstance(default, tuple | list)
            kind, count = type(default[0] if several else default), len(default) if isinstance(default, tuple) else "+"
            more: dict[str, Any] = {"nargs": count} if several else {"choices": self.choices.get(name)}
            parser.add_argument(f"--{name}", type=kind, default=default, help=f"default: {default}", **more)

    def check(self, options: Any) -> None:
        """Raise ``InputError`` for an option out of its range, or for a shape with too few numbers or classes."""
        for name, default in self.options.items():
            given, least = getattr(options, name), self.least.get(name, 1)
            values, most = given if isinstance(given, tuple | list) else [given], self.most.get(name, 1e9)
            if not isinstance(default, str) and not all(least <= value <= most for value in values):
                raise InputError(f"--{name} must be from {least:g} to {most:g}, not {given}")
            if name == "shape" and (len(given) < 3 or given[1] < 2):
                raise InputError(f"--shape must be B, C (at least 2) and one or more sizes, not {given}")

    def memory_of(self, name: str, options: Any) -> int:
        """Return the peak memory of one case in this process, in bytes."""
        if self.small is not None:
            self.make(name, argparse.Namespace(**vars(options) | self.small(options)))()
        return peak_memory(self.make(name, options), options.device)

    def _peak(self, name: str, options: Any, argv: list[str]) -> int:
        """Return the peak memory of a case: of a new process on a CPU, of this process on a GPU."""
        return self.memory_of(name, options) if options.device == "cuda" else in_fresh_process(argv, name)

    def _show(self, seconds: Any, kernels: Any, ratios: dict[str, float], peaks: dict[str, int], options: Any) -> None:
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
        table = Table(title=f"{self.title.format(**vars(options))}, {where}")
        for column in (
            "",
            "ms",
            "time",
            *(["kernels ms"] if kernels else ()),
            *(("peak MB", "memory") if peaks else ()),
        ):
            table.add_column(column, justify="right" if column else "left")
        for name, factor in ratios.items():
            row = [self.cases[name], f"{1e3 * statistics.median(seconds[name]):.4g}", multiple(factor)]
            row += [f"{1e3 * kernels[name]:.4g}"] if kernels else []
            if peaks:
                least = peaks[self.baseline]
                row += [f"{peaks[name] / 1e6:.0f}", multiple(peaks[name] / least) if least else "–"]
            table.add_row(*row)
        Console(markup=False, highlight=False).print(table)
        Console(markup=False, highlight=False).print(
            "ms: median over the rounds; time: median over the rounds of the ratio to the baseline (1.00×)."
            + (" kernels ms: how long the GPU works; where ms is longer, it waits for the host." if kernels else "")
        )


def multiple(factor: float) -> str:
    """Format a factor; one below 1 is shown as 1 divided by its inverse.

    >>> multiple(1.143), multiple(0.0625), multiple(0)
    ('1.14×', '1/16.0', '0×')
    """
    return f"{factor:.2f}×" if factor >= 1 else f"1/{1 / factor:.{1 if factor < 0.5 else 2}f}" if factor else "0×"


def in_turn(cases: Mapping[str, Case], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the seconds of every case; after a warm-up, each round calls all cases in turn.

    On a GPU the timer waits only after several calls, because in a training the GPU works while the next calls are
    prepared. The warm-up compiles kernels and chooses algorithms.
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


def kernel_seconds(run: Case) -> float:
    """Return how long a GPU works on one call, without its waits for the host."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in trace.key_averages() if event.device_type == CUDA) / 1e6


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_memory(run: Case, device: str = "cpu") -> int:
    """Return a run's peak memory less that in use before it, in bytes; on a CPU that of the whole process (Linux)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # The 5 resets the peak (VmHWM).
    resting = memory("VmRSS")
    run()
    peak = memory("VmHWM")
    if resting is None or peak is None:
        raise InputError("the memory of a benchmark can only be measured on Linux")
    return max(0, peak - resting)  # The kernel's counts are off by some pages.


def in_fresh_process(argv: list[str], case: str) -> int:
    """Return the peak memory of one case, which ``lsseg bench ARGV --memory-of CASE`` prints in a new process."""
    command = [sys.executable, "-P", "-m", "lsseg", "bench", *argv, "--memory-of", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"the memory of {case} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout))
