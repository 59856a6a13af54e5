"""``lsseg bench``: speed and memory of the numeric core, as ratios within one run."""

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsseg.arguments import Arguments
from lsseg.cli import (
    bench_chan_vese,
    bench_data,
    bench_dmls,
    bench_instances,
    bench_losses,
    bench_methods,
    bench_segment,
)
from lsseg.errors import InputError
from lsseg.files import write_json

BENCHMARKS = {
    "losses": bench_losses,
    "dmls": bench_dmls,
    "chan_vese": bench_chan_vese,
    "segment": bench_segment,
    "instances": bench_instances,
    "methods": bench_methods,
    "data": bench_data,
}


ON_CPU = {"segment"}  # against a library that knows no other device


def main(argv: list[str]) -> int:
    """Measure and print; returns the exit status."""
    parser = Arguments(
        prog="lsseg bench",
        description="Time the cases in turn, and measure the peak memory of each in a process of its own. Quote ratios "
        "within one run: machines are noisy.",
    )
    subparsers = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        own = subparsers.add_parser(name, help=(module.__doc__ or "").partition(": ")[2].strip())
        own.add_argument("--repeats", type=int, help="timed rounds")
        own.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
        own.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
        own.add_argument("--output", type=Path, help="write the figures as JSON, too")
        own.add_argument("--busy", type=int, default=0, metavar="N", help="processes that keep cores busy meanwhile")
        own.add_argument("--memory-of", choices=module.CASES, help=argparse.SUPPRESS)
        module.add_arguments(own)
    every = subparsers.add_parser("all", help="every benchmark with its own defaults")
    every.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    every.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    every.add_argument("--output", type=Path, help="write the figures as JSON, too")
    known = argv[1:2] and (argv[1] in BENCHMARKS or argv[1] in ("all", "-h", "--help"))
    given = argv[1:] if known else ["losses", *argv[1:]]
    options = parser.parse_args(given)
    _prepare(options)
    if options.benchmark == "all":
        figures: dict[str, Any] = {}
        for name in BENCHMARKS:
            if options.device == "cuda" and name in ON_CPU:
                continue
            defaults = [name, "--device", options.device]
            figures[name] = BENCHMARKS[name].run(parser.parse_args(defaults), defaults)
    else:
        module = BENCHMARKS[options.benchmark]
        module.check(options)
        if options.memory_of:
            print(json.dumps(module.memory_of(options.memory_of, options)))
            return 0
        with busy(options.busy):
            figures = module.run(options, given)
    if options.output:
        write_json(options.output, _made_by(given, options.device) | figures)
    return 0


def _prepare(options: argparse.Namespace) -> None:
    """Refuse what cannot be done; set the number of threads."""
    import torch

    if getattr(options, "busy", 0) < 0:
        raise InputError(f"--busy must be 0 or more, not {options.busy}")
    for key in ("repeats", "threads"):
        if getattr(options, key, None) is not None and getattr(options, key) < 1:
            raise InputError(f"--{key} must be at least 1, not {getattr(options, key)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here")
    if options.threads:
        torch.set_num_threads(options.threads)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep cores busy, as the workers of a loader do in every training."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _made_by(given: list[str], device: str) -> dict[str, str]:
    import torch

    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"command": shlex.join(["lsseg", "bench", *given]), "device": where, "torch": torch.__version__}
