"""``lsseg bench``: speed and memory of the numeric core, as ratios within one run."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.errors import InputError
from lsseg.files import write_json

CASES = {
    "cross_entropy": "cross-entropy (torch's)",
    "level_set": "level set",
    "fused": "both, fused",
    "dense": "level set, textbook",
}
SLOW = {"dense"}  # timed fewer times


def main(argv: list[str]) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="lsseg bench",
        description="Time forward + backward of the losses on float32 logits, in turn, and measure the peak memory of "
        "each in a process of its own. Ratios within one run are what to quote: machines are noisy.",
    )
    parser.add_argument("--shape", type=int, nargs=4, default=[4, 21, 512, 512], metavar=("B", "C", "H", "W"))
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--void", type=float, default=0.0, help="share of void pixels (default: 0)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    parser.add_argument("--memory-of", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv[1:])
    if min(options.shape) < 1 or options.shape[1] < 2 or options.repeats < 1 or not 0 <= options.void < 1:
        raise InputError("expected --shape of four positive numbers, C at least 2, --repeats ≥ 1 and --void in [0, 1)")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(_peak_memory(options.memory_of, options)))
        return 0
    seconds = _time(options)
    memory = {name: _memory(name, argv[1:]) for name in CASES}
    result = {name: {"seconds": statistics.median(seconds[name]), "peak_bytes": memory[name]} for name in CASES}
    ratios = {name: statistics.median(_pairwise(seconds[name], seconds["cross_entropy"])) for name in CASES}
    _show(result, ratios, options, torch.get_num_threads())
    if options.output:
        write_json(options.output, {"shape": options.shape, "cases": result, "time_ratios": ratios})
    return 0


def _losses(options: Any) -> tuple[dict[str, Callable[[], Any]], Any]:
    """The cases as functions without arguments, and the logits they share."""
    import torch
    import torch.nn.functional as F

    from lsseg.functional import cross_entropy_level_set, level_set_energy

    generator = torch.Generator().manual_seed(0)
    images, classes, height, width = options.shape
    logits = torch.randn(images, classes, height, width, generator=generator).to(options.device).requires_grad_()
    target = torch.randint(0, classes, (images, height, width), generator=generator)
    target[torch.rand(target.shape, generator=generator) < options.void] = 255
    target = target.to(options.device)

    def fused() -> Any:
        cross_entropy, energy = cross_entropy_level_set(logits, target)
        return cross_entropy + 0.67 * energy

    cases: dict[str, Callable[[], Any]] = {
        "cross_entropy": lambda: F.cross_entropy(logits, target, ignore_index=255),
        "level_set": lambda: level_set_energy(logits, target),
        "fused": fused,
        "dense": lambda: dense_level_set(logits, target),
    }
    return cases, logits


def dense_level_set(logits: Any, target: Any, epsilon: float = 1 / 20) -> Any:
    """Kim 2019, eq. 4-6, as printed, for autograd: what the closed form is measured against (``mean`` reduction)."""
    import torch
    import torch.nn.functional as F

    valid = (target != 255).unsqueeze(1)
    truth = F.one_hot(target.masked_fill(~valid[:, 0], 0), logits.shape[1]).permute(0, 3, 1, 2) * valid
    h = 0.5 * (1 + torch.tanh((torch.softmax(logits, 1) - 0.5) / epsilon))
    pixels = (2, 3)
    c1 = (truth * h).sum(pixels, keepdim=True) / (h * valid).sum(pixels, keepdim=True)
    c2 = (truth * (1 - h)).sum(pixels, keepdim=True) / ((1 - h) * valid).sum(pixels, keepdim=True)
    energy = (((truth - c1) ** 2 * h + (truth - c2) ** 2 * (1 - h)) * valid).sum(pixels)
    present = truth.sum(pixels) > 0
    return ((energy * present).sum(1) / valid.sum((1, 2, 3))).mean()


def _time(options: Any) -> dict[str, list[float]]:
    """Seconds of forward + backward, the cases in turn in every round, after one round of warm-up."""
    import torch

    cases, logits = _losses(options)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(options.repeats + 1):
        for name, loss in cases.items():
            if name in SLOW and turn > max(2, options.repeats // 3):
                continue
            start = time.perf_counter()
            loss().backward()
            if options.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
            logits.grad = None
    return seconds


def _pairwise(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=False)]


def _memory(name: str, argv: list[str]) -> int:
    """Peak memory of one case above what was there before it, from a fresh process."""
    command = [sys.executable, "-m", "lsseg", "bench", *argv, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"the memory of {name} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout))


def _peak_memory(name: str, options: Any) -> int:
    import torch

    cases, _ = _losses(options)
    # Once on a small input: what is allocated at first use is no cost of the loss.
    small = argparse.Namespace(**{**vars(options), "shape": [1, options.shape[1], 8, 8]})
    _losses(small)[0][name]().backward()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        cases[name]().backward()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = _status("VmRSS")
    cases[name]().backward()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status does not tell {key}")


def _show(result: dict[str, Any], ratios: dict[str, float], options: Any, threads: int) -> None:
    where = "CUDA" if options.device == "cuda" else f"{threads} CPU threads"
    table = Table(title=f"forward + backward, float32 logits {tuple(options.shape)}, {where}")
    for column in ("loss", "ms", "time", "peak MB", "memory", "against textbook"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    base, dense = result["cross_entropy"], result["dense"]
    for name, figures in result.items():
        faster = "–" if name in ("cross_entropy", "dense") else f"{dense['seconds'] / figures['seconds']:.1f}× faster"
        table.add_row(
            CASES[name],
            f"{1e3 * figures['seconds']:.0f}",
            f"{ratios[name]:.2f}×",
            f"{figures['peak_bytes'] / 1e6:.0f}",
            f"{figures['peak_bytes'] / base['peak_bytes']:.2f}×",
            faster,
        )
    console = Console()
    console.print(table)
    console.print("Times and memory as multiples of cross-entropy's; the textbook form is dense, one-hot, by autograd.")
