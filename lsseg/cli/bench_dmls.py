"""``lsseg bench dmls``: what the level sets of DMLS cost in time and memory, and its size beside the paper's."""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.cli.measure import in_turn, pairwise, peak_memory, peaks
from lsseg.errors import InputError

# Memory is measured of these: K = 1, K steps, and K steps that are computed again in the backward pass.
CASES = {"one": "one step", "all": "K steps", "checkpointed": "K steps, checkpointed"}
# Zhang 2019, table VIII: frames per second on a Titan X, GFLOPs, million parameters.
PAPER = {"DMLS": (6.53, 102.4, 34.0), "FCN-8s, vgg16": (16.24, 220.4, 134.5)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--classes", type=int, default=19, help="C (default: 19)")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=4, help="K (default: 4)")
    parser.add_argument("--encoder", default="resnet50", help="for the times (default: resnet50)")
    parser.add_argument("--memory-encoder", default="resnet101", help="for the memory (default: resnet101)")
    parser.set_defaults(repeats=3)


def check(options: Any) -> None:
    """Refuse options out of range."""
    if options.classes < 2 or min(options.size) < 16 or options.steps < 1:
        raise InputError("expected --classes of at least 2, --size of at least 16 16 and --steps of at least 1")


def run(options: Any, argv: list[str]) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    step = _training_step(options)
    distance = _distances(options)
    cost = _costs(options)
    memory = peaks(CASES, memory_of, argv, options)
    _show(step, distance, cost, memory, options)
    return {"training_step": step, "distance_transform": distance, "costs": cost, "peak_bytes": memory}


def memory_of(case: str, options: Any) -> int:
    """Peak memory of one training step's forward and backward pass at batch 1, in bytes."""
    net = _dmls(options, options.memory_encoder, steps=1 if case == "one" else options.steps)
    net.checkpoint = case == "checkpointed"
    return peak_memory(_trains(net, options), options.device)


def _dmls(options: Any, encoder: str, **arguments: Any) -> Any:
    import torch

    from lsseg.models import DFCN, DMLS

    torch.manual_seed(0)
    arguments = {"steps": options.steps, **arguments}
    return DMLS(options.classes, partial(DFCN, encoder_name=encoder), **arguments).to(options.device)


def _regions(options: Any) -> Any:
    """Smooth scores in whose partition every class has a few regions, as in a picture."""
    import torch

    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, options.classes, 12, 12, generator=g)
    return torch.nn.functional.interpolate(coarse, options.size, mode="bicubic").mul(4).to(options.device)


def _trains(net: Any, options: Any) -> Callable[[], None]:
    """Forward and backward pass of a batch of one, each step supervised by one weighted cross-entropy."""
    import torch

    from lsseg.losses import WeightedCrossEntropy

    image, regions = torch.rand(1, 3, *options.size, device=options.device), _regions(options)
    # Not the partition itself: nothing to learn makes gradients so small that CPUs take them at a tenth of the speed.
    target = regions.argmax(1).roll((9, 13), (1, 2))
    criterion = WeightedCrossEntropy([1.0] * options.classes).to(options.device)
    # An untrained network's own partition is nothing like a picture's: regions are added to its scores.
    net.network.register_forward_hook(lambda module, inputs, output: output._replace(logits=output.logits + regions))
    net.train()

    def step() -> None:
        net.zero_grad(set_to_none=True)
        loss = torch.stack([criterion(one.last, target) for one in net(image).steps]).sum()
        torch.autograd.backward(loss)

    return step


def _training_step(options: Any) -> dict[str, Any]:
    """Seconds of a training step with and without level sets; as many losses in both."""
    cases = {
        name: _trains(_dmls(options, options.encoder, level_set=name == "with"), options)
        for name in ("without", "with")
    }
    seconds = in_turn(cases, options.repeats, options.device)
    share = statistics.median(1 - ratio for ratio in pairwise(seconds["without"], seconds["with"]))
    return {**{name: statistics.median(values) for name, values in seconds.items()}, "share": share}


def _distances(options: Any) -> dict[str, float]:
    """Seconds of the signed distances of one partition, by both ways."""
    from lsseg.functional import largest_class, regions, signed_distance
    from lsseg.functional.distance import windowed_signed_distance

    planes = regions(largest_class(_regions(options)), options.classes)[0]
    cases = {
        "windowed": lambda: windowed_signed_distance(planes, 10.0),
        "library" if options.device == "cpu" else "kernels": lambda: signed_distance(planes, 10.0),
    }
    seconds = in_turn(cases, max(5, options.repeats), options.device)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _costs(options: Any) -> dict[str, dict[str, float]]:
    """Frames per second, GFLOPs and million parameters at inference."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lsseg.models import FCN

    nets = {
        "DMLS": _dmls(options, options.encoder),
        "DMLS, one step": _dmls(options, options.encoder, steps=1),
        "FCN-8s, vgg16": FCN(options.classes).to(options.device),
    }
    image = torch.rand(1, 3, *options.size, device=options.device)
    costs = {}
    for name, net in nets.items():
        net.eval()
        with torch.no_grad():
            seconds = in_turn({name: lambda net=net: net(image)}, options.repeats, options.device)[name]  # type: ignore[misc]
            with FlopCounterMode(display=False) as counter:
                net(image)
        costs[name] = {
            "fps": 1 / statistics.median(seconds),
            "gflops": counter.get_total_flops() / 1e9,
            "parameters": sum(p.numel() for p in net.parameters()) / 1e6,
        }
    return costs


def _show(step: Any, distance: Any, cost: Any, memory: Any, options: Any) -> None:
    import torch

    where = "CUDA" if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    size = f"C = {options.classes}, {options.size[0]}×{options.size[1]}, batch 1, {where}"
    console = Console(highlight=False)
    console.print(
        f"training step, K = {options.steps}, DFCN on {options.encoder}, {size}: "
        f"{1e3 * step['with']:.0f} ms with level "
        f"sets, {1e3 * step['without']:.0f} ms without: {100 * step['share']:.1f} % of the time is theirs"
    )
    times = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in distance.items())
    console.print(f"signed distances of one partition, τ = 10: {times}")
    table = Table(title=f"peak memory of a training step, DFCN on {options.memory_encoder}, {size}")
    for column in ("", "MB", "of one step"):
        table.add_column(column, justify="right" if column else "left")
    for name, label in CASES.items():
        table.add_row(label, f"{memory[name] / 1e6:.0f}", f"{memory[name] / memory['one']:.2f}×")
    console.print(table)
    table = Table(title="inference, and what Zhang 2019, table VIII, has (Titan X)")
    for column in ("network", "fps", "GFLOPs", "parameters", "fps", "GFLOPs", "parameters"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, figures in cost.items():
        paper = PAPER.get(name, ())
        ours = (f"{figures['fps']:.2f}", f"{figures['gflops']:.1f}", f"{figures['parameters']:.1f} M")
        table.add_row(name, *ours, *(f"{value}" for value in paper))
    console.print(table)
    console.print("FLOPs count a multiplication and an addition as two, and convolutions only: level sets cost time.")
