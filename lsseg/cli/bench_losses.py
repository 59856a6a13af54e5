"""``lsseg bench losses``: the level-set loss against cross-entropy and its own textbook form."""

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.cli.measure import in_turn, pairwise, peak_memory, peaks
from lsseg.errors import InputError

CASES = {
    "cross_entropy": "cross-entropy (torch's)",
    "level_set": "level set",
    "fused": "both, fused",
    "whole": "both, fused, without Triton",
    "dense": "level set, textbook",
    "dice": "Dice (smp's)",
    "lovasz": "Lovász (smp's)",
}
SLOW = {"dense"}  # timed fewer times
# Timed after the others: what they leave in memory would make those that come behind them faster.
RIVALS = {"dice", "lovasz"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--shape", type=int, nargs="+", default=[4, 21, 512, 512], metavar="B C H W", help="of the logits; any axes"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the logits")
    parser.add_argument("--void", type=float, default=0.0, help="share of void pixels (default: 0)")
    parser.set_defaults(repeats=9)


def check(options: Any) -> None:
    """Refuse options out of range."""
    few = len(options.shape) < 3
    if few or min(options.shape) < 1 or options.shape[1] < 2 or not 0 <= options.void < 1:
        raise InputError("expected --shape of three or more positive numbers, C at least 2, and --void in [0, 1)")


def run(options: Any, argv: list[str]) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    import torch

    seconds = _time(options)
    memory = peaks(seconds, memory_of, argv, options)
    result = {name: {"seconds": statistics.median(seconds[name]), "peak_bytes": memory[name]} for name in seconds}
    ratios = {name: statistics.median(pairwise(seconds[name], seconds["cross_entropy"])) for name in seconds}
    _show(result, ratios, options, torch.get_num_threads())
    figures = {"shape": options.shape, "dtype": options.dtype, "cases": result, "time_ratios": ratios}
    if options.device == "cuda":
        figures["bandwidth"] = _bandwidth(result, options)
    return figures


def _bandwidth(result: dict[str, Any], options: Any) -> dict[str, float]:
    """Bytes a second of a device's copy, and the share of it at which the losses read the logits twice, write once."""
    import torch

    dtype = getattr(torch, options.dtype)
    source = torch.empty(2**28, dtype=dtype, device="cuda")
    target = torch.empty_like(source)
    seconds = statistics.median(in_turn({"copy": lambda: target.copy_(source)}, 10, "cuda")["copy"])
    copied = 2 * source.numel() * dtype.itemsize / seconds
    moved = 3 * math.prod(options.shape) * dtype.itemsize
    shares = {name: moved / result[name]["seconds"] / copied for name in ("level_set", "fused")}
    said = ", ".join(f"{CASES[name]} {100 * share:.0f} %" for name, share in shares.items())
    Console().print(f"A copy moves {copied / 1e12:.2f} TB/s. Of that reach, by three passes over the logits: {said}.")
    return {"copied_bytes_per_second": copied, **shares}


def _losses(options: Any) -> tuple[dict[str, Callable[[], Any]], Any]:
    """The cases as functions without arguments, and the logits they share."""
    import segmentation_models_pytorch as smp
    import torch
    import torch.nn.functional as F

    from lsseg.functional import cross_entropy_level_set, level_set_energy

    generator = torch.Generator().manual_seed(0)
    images, classes, *space = options.shape
    logits = torch.randn(images, classes, *space, generator=generator)
    logits = logits.to(options.device, getattr(torch, options.dtype)).requires_grad_()
    target = torch.randint(0, classes, (images, *space), generator=generator)
    target[torch.rand(target.shape, generator=generator) < options.void] = 255
    target = target.to(options.device)

    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    lovasz = smp.losses.LovaszLoss("multiclass", ignore_index=255)

    def fused(kernels: Any = "auto") -> Any:
        cross_entropy, energy = cross_entropy_level_set(logits, target, kernels=kernels)
        return cross_entropy + 0.67 * energy

    cases: dict[str, Callable[[], Any]] = {
        "cross_entropy": lambda: F.cross_entropy(logits, target, ignore_index=255),
        "level_set": lambda: level_set_energy(logits, target),
        "fused": fused,
        "whole": lambda: fused("torch"),
        "dense": lambda: dense_level_set(logits, target),
        "dice": lambda: dice(logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)),
        "lovasz": lambda: lovasz(logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)),
    }
    if options.device == "cpu":  # where Triton is never asked for
        del cases["whole"]
    return cases, logits


def dense_level_set(logits: Any, target: Any, epsilon: float = 1 / 20) -> Any:
    """Kim 2019, eq. 4-6, as printed, for autograd: what the closed form is measured against (``mean`` reduction)."""
    import torch
    import torch.nn.functional as F

    valid = (target != 255).unsqueeze(1)
    truth = F.one_hot(target.masked_fill(~valid[:, 0], 0), logits.shape[1]).movedim(-1, 1) * valid
    h = 0.5 * (1 + torch.tanh((torch.softmax(logits, 1) - 0.5) / epsilon))
    pixels = tuple(range(2, logits.ndim))
    c1 = (truth * h).sum(pixels, keepdim=True) / (h * valid).sum(pixels, keepdim=True)
    c2 = (truth * (1 - h)).sum(pixels, keepdim=True) / ((1 - h) * valid).sum(pixels, keepdim=True)
    energy = (((truth - c1) ** 2 * h + (truth - c2) ** 2 * (1 - h)) * valid).sum(pixels)
    present = truth.sum(pixels) > 0
    return ((energy * present).sum(1) / valid.flatten(1).sum(1)).mean()


def _time(options: Any) -> dict[str, list[float]]:
    """Seconds of forward + backward; the slow ones are timed fewer times."""
    cases, logits = _losses(options)

    def backward(loss: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss().backward()

        return run

    timed = {name: backward(loss) for name, loss in cases.items()}
    few = max(2, options.repeats // 3)
    seconds = in_turn({n: r for n, r in timed.items() if n not in RIVALS}, few, options.device)
    more = in_turn({n: r for n, r in timed.items() if n not in SLOW | RIVALS}, options.repeats - few, options.device)
    rivals = in_turn({n: r for n, r in timed.items() if n in RIVALS}, few, options.device)
    return {name: values + more.get(name, []) for name, values in (seconds | rivals).items()}


def memory_of(case: str, options: Any) -> int:
    """Peak memory of one case, in bytes."""
    cases, _ = _losses(options)
    # Once on a small input: what is allocated at first use is no cost of the loss.
    small = argparse.Namespace(
        **{**vars(options), "shape": [1, options.shape[1], 8, 8, *[1] * (len(options.shape) - 4)]}
    )
    _losses(small)[0][case]().backward()
    return peak_memory(lambda: cases[case]().backward(), options.device)


def _show(result: dict[str, Any], ratios: dict[str, float], options: Any, threads: int) -> None:
    where = "CUDA" if options.device == "cuda" else f"{threads} CPU threads"
    table = Table(title=f"forward + backward, {options.dtype} logits {tuple(options.shape)}, {where}")
    for column in ("loss", "ms", "time", "peak MB", "memory", "against textbook"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    base, dense = result["cross_entropy"], result["dense"]
    for name, figures in result.items():
        faster = (
            "–"
            if name in ("cross_entropy", "dense", "dice", "lovasz")
            else f"{dense['seconds'] / figures['seconds']:.1f}× faster"
        )
        table.add_row(
            CASES[name],
            f"{1e3 * figures['seconds']:.{0 if figures['seconds'] > 0.01 else 2}f}",
            f"{ratios[name]:.2f}×",
            f"{figures['peak_bytes'] / 1e6:.0f}",
            f"{figures['peak_bytes'] / base['peak_bytes']:.2f}×" if base["peak_bytes"] else "–",
            faster,
        )
    console = Console()
    console.print(table)
    console.print("Times and memory as multiples of cross-entropy's; the textbook form is dense, one-hot, by autograd.")
