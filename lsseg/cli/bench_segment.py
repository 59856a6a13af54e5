"""``lsseg bench segment``: the classical Chan-Vese segmentation against scikit-image's, by time and by energy."""

import argparse
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.cli.measure import in_turn, peak_memory
from lsseg.errors import InputError

CASES = {"scikit_image": "scikit-image", "ours": "chan_vese_segment"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--size", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--mu", type=float, default=0.1, help="price of a pixel of contour (default: 0.1)")
    parser.add_argument("--noise", type=float, default=0.15, help="standard deviation of the noise (default: 0.15)")
    parser.set_defaults(repeats=3)


def check(options: Any) -> None:
    """Refuse options out of range."""
    if min(options.size) < 8 or not options.mu > 0 or not options.noise >= 0:
        raise InputError("expected --size of two numbers of at least 8, --mu above 0 and --noise not below 0")


def run(options: Any, argv: list[str]) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    import torch

    from lsseg.functional import chan_vese_energy

    if options.device == "cuda":
        raise InputError("scikit-image has no CUDA: `lsseg bench segment` runs on a CPU")
    image, cases = _cases(options)
    seconds = in_turn(cases, options.repeats)
    figures: dict[str, Any] = {"size": options.size, "mu": options.mu, "noise": options.noise, "cases": {}}
    for name, segment in cases.items():
        energy = float(chan_vese_energy(image, segment(), options.mu))
        figures["cases"][name] = {"seconds": statistics.median(seconds[name]), "energy": energy}
    table = Table(title=f"a noisy disc of {options.size[0]}×{options.size[1]}, μ = {options.mu:g}")
    for column in ("", "s", "energy"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in figures["cases"].items():
        table.add_row(CASES[name], f"{found['seconds']:.3f}", f"{found['energy']:.2f}")
    theirs, ours = figures["cases"].values()
    figures["times_faster"] = theirs["seconds"] / ours["seconds"]
    figures["energy_ratio"] = ours["energy"] / theirs["energy"]
    console = Console()
    console.print(table)
    console.print(
        f"{figures['times_faster']:.1f}× faster, at {figures['energy_ratio']:.4f} of its energy "
        f"({torch.get_num_threads()} CPU threads)."
    )
    return figures


def memory_of(case: str, options: Any) -> int:
    """Peak memory of one case, in bytes."""
    return peak_memory(_cases(options)[1][case])


def _cases(options: Any) -> tuple[Any, dict[str, Any]]:
    """The image, 1×1×H×W, and both segmentations of it as functions without arguments."""
    import torch
    from skimage.segmentation import chan_vese

    from lsseg.functional import chan_vese_segment

    height, width = options.size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - height / 2) ** 2 + (x - 0.4 * width) ** 2 < (0.3 * min(height, width)) ** 2
    noise = torch.randn(height, width, generator=torch.Generator().manual_seed(0))
    image = (0.3 + 0.4 * inside + options.noise * noise).clamp(0, 1)
    plain = image.double().numpy()
    return image[None, None], {
        "scikit_image": lambda: torch.from_numpy(chan_vese(plain, mu=options.mu))[None],
        "ours": lambda: chan_vese_segment(image[None, None], mu=options.mu) > 0,
    }
