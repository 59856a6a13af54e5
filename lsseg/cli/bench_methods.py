"""``lsseg bench methods``: what a training step of every method takes beside cross-entropy's, on one network."""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.cli.measure import in_turn, pairwise, peak_memory, peaks
from lsseg.errors import InputError

CASES = {
    "cross_entropy": "cross-entropy",
    "level_set": "cross-entropy + level set",
    "dmls_off": "DMLS, K = 2, without its layer",
    "dmls": "DMLS, K = 2",
    "convolution": "a convolution in the refiner's place",
    "chan_vese": "Chan–Vese refiner",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--shape", type=int, nargs=4, metavar=("B", "C", "H", "W"), help="default: 8 11 320 448, CPU 1")
    parser.add_argument("--encoder", default="tu-tf_efficientnet_lite0", help="of the U-Net, random weights")
    parser.add_argument("--precision", choices=["32", "bf16"], help="default: bf16 on a GPU, 32 on a CPU")
    parser.set_defaults(repeats=3)


def check(options: Any) -> None:
    """Refuse options out of range."""
    if options.shape and (min(options.shape) < 1 or options.shape[1] < 2 or min(options.shape[2:]) < 32):
        raise InputError("expected --shape of four positive numbers, C at least 2, H and W at least 32")


def run(options: Any, argv: list[str]) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    steps = {name: _step(name, options) for name in CASES}
    for step in steps.values():  # kernels are compiled, and algorithms chosen, in the first calls
        step()
        step()
    seconds = in_turn(steps, options.repeats, options.device)
    del steps
    memory = peaks(CASES, memory_of, argv, options)
    ratios = {name: statistics.median(pairwise(seconds[name], seconds["cross_entropy"])) for name in CASES}
    _show(seconds, ratios, memory, options)
    return {"shape": _shape(options), "seconds": seconds, "time_ratios": ratios, "peak_bytes": memory}


def memory_of(case: str, options: Any) -> int:
    """Peak memory of one training step, in bytes."""
    return peak_memory(_step(case, options), options.device)


def _shape(options: Any) -> tuple[int, int, int, int]:
    images, classes, height, width = options.shape or (8 if options.device == "cuda" else 1, 11, 320, 448)
    return images, classes, height, width


def _task(name: str, classes: int, encoder: str) -> Any:
    from lsseg.models import DMLS, ChanVeseNet, SmpNet
    from lsseg.tasks import ChanVeseTask, DMLSTask, LevelSetLossTask, SegmentationTask

    network: Any = partial(SmpNet, encoder_name=encoder, encoder_weights=None)
    if name.startswith("dmls"):
        return DMLSTask(classes, network=partial(DMLS, network=network, steps=2, level_set=name == "dmls"))
    if name in ("chan_vese", "convolution"):
        refiner: Any = partial(ChanVeseNet, network=network, stride=2, features=32, refine=name)  # type: ignore[arg-type]
        return ChanVeseTask(classes, network=refiner)
    return (LevelSetLossTask if name == "level_set" else SegmentationTask)(classes, network=network)


def _step(name: str, options: Any) -> Callable[[], None]:
    """Forward pass, losses and backward pass; no optimiser, which is the same for all."""
    import torch

    torch.manual_seed(0)
    images, classes, height, width = _shape(options)
    task = _task(name, classes, options.encoder).to(options.device).train()
    coarse = torch.randn(images, classes, 6, 8)
    mask = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").argmax(1).to(options.device)
    batch = {"image": torch.rand(images, 3, height, width, device=options.device), "mask": mask}
    half = (options.precision or ("bf16" if options.device == "cuda" else "32")) == "bf16"

    def step() -> None:
        task.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=half):
            loss = task.losses(task.train_output(batch), mask)["loss"]
        loss.backward()

    return step


def _show(seconds: Any, ratios: Any, memory: Any, options: Any) -> None:
    import torch

    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table = Table(title=f"training step, U-Net on {options.encoder}, {_shape(options)}, {where}")
    for column in ("method", "ms", "time", "peak MB", "memory"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, label in CASES.items():
        table.add_row(
            label,
            f"{1e3 * statistics.median(seconds[name]):.1f}",
            f"{ratios[name]:.2f}×",
            f"{memory[name] / 1e6:.0f}",
            f"{memory[name] / memory['cross_entropy']:.2f}×",
        )
    Console(highlight=False).print(table)
