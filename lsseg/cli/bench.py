"""``lsseg bench``: speed and memory of the numeric core, as ratios within one run."""

import argparse
import json
import shlex
from pathlib import Path

from lsseg.cli import bench_chan_vese, bench_data, bench_dmls, bench_instances, bench_losses
from lsseg.errors import InputError
from lsseg.files import write_json

BENCHMARKS = {
    "losses": bench_losses,
    "dmls": bench_dmls,
    "chan_vese": bench_chan_vese,
    "instances": bench_instances,
    "data": bench_data,
}


def main(argv: list[str]) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
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
        own.add_argument("--memory-of", choices=module.CASES, help=argparse.SUPPRESS)
        module.add_arguments(own)
    given = argv[1:] if argv[1:2] and (argv[1] in BENCHMARKS or argv[1] in ("-h", "--help")) else ["losses", *argv[1:]]
    options = parser.parse_args(given)
    module = BENCHMARKS[options.benchmark]
    module.check(options)
    for key in ("repeats", "threads"):
        if getattr(options, key) is not None and getattr(options, key) < 1:
            raise InputError(f"--{key} must be at least 1, not {getattr(options, key)}")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(module.memory_of(options.memory_of, options)))
        return 0
    figures = module.run(options, given)
    if options.output:
        where = options.device if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
        made_by = {"command": shlex.join(["lsseg", "bench", *given]), "device": where, "torch": torch.__version__}
        write_json(options.output, made_by | figures)
    return 0
