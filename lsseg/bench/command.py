"""Runs ``lsseg bench NAME``: one benchmark, or all of them."""

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lsseg.arguments import Arguments
from lsseg.bench import core, data, networks
from lsseg.errors import InputError
from lsseg.files import write_json

BENCHMARKS = core.BENCHMARKS | networks.BENCHMARKS | data.BENCHMARKS
ON_CPU = {"segment", "data"}  # Their rivals run on no other device.


def main(argv: list[str]) -> int:
    """Measure, print the figures, and return the exit status."""
    parser = _parser()
    options_only = not argv[1:] or (argv[1].startswith("-") and argv[1] not in ("-h", "--help"))
    given = ["losses", *argv[1:]] if options_only else argv[1:]
    options = parser.parse_args(given)
    _prepare(options)
    figures: dict[str, Any] = {}
    if options.benchmark != "all":
        benchmark = BENCHMARKS[options.benchmark]
        benchmark.check(options)
        if options.memory_of:
            print(json.dumps(benchmark.memory_of(options.memory_of, options)))
            return 0
    with busy(options.busy):
        if options.benchmark != "all":
            figures = benchmark.run(options, given)
        else:
            for name, benchmark in BENCHMARKS.items():
                if options.device == "cpu" or name not in ON_CPU:
                    shared = [
                        "--device",
                        options.device,
                        *(["--threads", str(options.threads)] if options.threads else []),
                    ]
                    defaults = [name, *shared, *(benchmark.on_gpu if options.device == "cuda" else ())]
                    figures[name] = benchmark.run(parser.parse_args(defaults), defaults)
    if options.output:
        write_json(options.output, _made_by(given, options.device) | figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="lsseg bench",
        description="Time the cases in turn, and measure the peak memory of each in a process of its own. Compare "
        "times only within one run, because the speed of a machine varies.",
    )
    subparsers = parser.add_subparsers(dest="benchmark", required=True)
    for name, about in {**{name: one.about for name, one in BENCHMARKS.items()}, "all": "every benchmark"}.items():
        own = subparsers.add_parser(name, help=about)
        own.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
        own.add_argument("--device", default="cpu", choices=["cpu"] if name in ON_CPU else ["cpu", "cuda"])
        own.add_argument("--output", type=Path, help="also write the figures to this JSON file")
        own.add_argument(
            "--busy",
            type=int,
            default=0,
            metavar="N",
            help="number of processes that keep CPU cores busy during the benchmark",
        )
        if name in BENCHMARKS:
            BENCHMARKS[name].add_to(own)
    return parser


def _prepare(options: argparse.Namespace) -> None:
    """Refuse options that cannot be used, and set the number of threads."""
    if options.busy < 0:
        raise InputError(f"--busy must be 0 or more, not {options.busy}")
    for key in ("repeats", "threads"):
        if getattr(options, key, None) is not None and getattr(options, key) < 1:
            raise InputError(f"--{key} must be at least 1, not {getattr(options, key)}")
    if options.output is not None and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise InputError(f"--output {options.output} must be a file in a folder that exists")
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
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"command": shlex.join(["lsseg", "bench", *given]), "device": where, "torch": torch.__version__}
