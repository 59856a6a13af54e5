"""``lsseg bench instances``: what the level sets add to Mask R-CNN's inference and training step."""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.cli.measure import in_turn, pairwise, peak_memory, peaks
from lsseg.errors import InputError

CASES = {"plain": "Mask R-CNN", "level_set": "LevelSet R-CNN"}
PLAIN = {"target": "binary", "evolution": "none", "resolution": 28}
# Homayounfar 2020, section 5: ms for an image of 1024×2048 on a GTX 1080 Ti.
PAPER = {"plain": 145, "level_set": 182}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--objects", type=int, default=100, help="detections of an image (default: 100)")
    parser.add_argument("--classes", type=int, default=8, help="C (default: 8, as in Cityscapes)")
    parser.set_defaults(repeats=5)


def check(options: Any) -> None:
    """Refuse options out of range."""
    if min(options.size) < 64 or options.objects < 1 or options.classes < 1:
        raise InputError("expected --size of at least 64 64, --objects and --classes of at least 1")


def run(options: Any, argv: list[str]) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    seconds = in_turn({name: _inference(name, options) for name in CASES}, options.repeats, options.device)
    memory = peaks(CASES, memory_of, argv, options)
    ratio = statistics.median(pairwise(seconds["level_set"], seconds["plain"]))
    _show(seconds, memory, ratio, options)
    costs = {name: {"ms": 1e3 * statistics.median(seconds[name])} for name in CASES}
    return {"costs": costs, "seconds": seconds, "ratio": ratio, "peak_bytes": memory}


def memory_of(case: str, options: Any) -> int:
    """Peak memory of inference on one image, in bytes."""
    return peak_memory(_inference(case, options), options.device)


def _inference(case: str, options: Any) -> Callable[[], None]:
    """Time the way from an image to masks at its size. All detections are kept, so that both have as many objects."""
    import torch

    from lsseg.functional.instances import paste_masks
    from lsseg.models import LevelSetRCNN

    torch.manual_seed(0)
    switches: dict[str, Any] = PLAIN if case == "plain" else {}
    shared = {"score_threshold": 0.0, "detections": options.objects}
    net = LevelSetRCNN(options.classes, options.encoder, **shared, **switches).to(options.device).eval()
    image = torch.rand(3, *options.size, generator=torch.Generator().manual_seed(1)).to(options.device)

    def step() -> None:
        with torch.no_grad():
            found = net([image])[0]
            paste_masks(found.masks.final, found.boxes, (options.size[0], options.size[1]))

    return step


def _show(seconds: Any, memory: Any, ratio: float, options: Any) -> None:
    import torch

    where = "CUDA" if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    size = f"{options.size[0]}×{options.size[1]}, {options.objects} objects"
    table = Table(title=f"inference, {options.encoder} with a feature pyramid, {size}, {where}")
    for column in ("", "s", "peak MB", "paper, ms (GTX 1080 Ti, 1024×2048)"):
        table.add_column(column, justify="right" if column else "left")
    for name, label in CASES.items():
        row = (f"{statistics.median(seconds[name]):.2f}", f"{memory[name] / 1e6:.0f}", str(PAPER[name]))
        table.add_row(label, *row)
    console = Console(highlight=False)
    console.print(table)
    paper = PAPER["level_set"] / PAPER["plain"]
    console.print(f"LevelSet R-CNN takes {ratio:.2f} times as long as Mask R-CNN (the paper's: {paper:.2f})")
