"""``lsseg bench chan_vese``: the unrolled Chan-Vese evolution against its textbook form and scikit-image."""

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.cli.measure import in_turn, pairwise, peak_memory, peaks
from lsseg.errors import InputError

CASES = {
    "ours": "ours",
    "coarse": "ours, features of stride 4 (never enlarged)",
    "whole": "ours, without Triton",
    "expanded": "squares expanded, autograd",
    "textbook": "textbook, autograd",
}


STRIDE = 4  # of the feature head of LevelSet R-CNN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--objects", type=int, default=100, help="M (default: 100)")
    parser.add_argument("--features", type=int, default=64, help="D (default: 64)")
    parser.add_argument("--size", type=int, default=112, help="height and width (default: 112)")
    parser.add_argument("--steps", type=int, default=3, help="N (default: 3)")
    parser.add_argument("--image-size", type=int, default=256, help="side of scikit-image's image (default: 256)")
    parser.set_defaults(repeats=3)


def check(options: Any) -> None:
    """Refuse options out of range."""
    if min(options.objects, options.features, options.steps) < 1 or min(options.size, options.image_size) < 8:
        raise InputError("expected --objects, --features, --steps of at least 1 and sizes of at least 8")


def run(options: Any, argv: list[str]) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    cases = [name for name in CASES if name != "whole" or options.device == "cuda"]  # a CPU has no Triton
    seconds = in_turn({name: _pass(name, options) for name in cases}, options.repeats, options.device)
    memory = peaks(cases, memory_of, argv, options)
    library = _against_library(options)
    _show(seconds, memory, library, options)
    return {"seconds": seconds, "peak_bytes": memory, "scikit_image": library}


def memory_of(case: str, options: Any) -> int:
    """Peak memory of one forward and backward pass, in bytes."""
    return peak_memory(_pass(case, options), options.device)


def _pass(case: str, options: Any) -> Callable[[], None]:
    """Forward and backward pass with gradients for everything."""
    import torch

    from lsseg.functional import chan_vese_evolve

    objects, steps, device = options.objects, options.steps, options.device
    g = torch.Generator().manual_seed(0)
    size = (options.size, options.size)
    coarse = torch.randn(objects, 1, 6, 6, generator=g)
    phi = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[:, 0].clamp(-1, 1)
    cells = [-(-side // STRIDE) for side in size] if case == "coarse" else size
    features = torch.randn(objects, options.features, *cells, generator=g) / 4
    numbers = [torch.ones(objects), torch.ones(objects), torch.full((objects,), 0.25)]
    numbers += [torch.ones(objects, steps), torch.ones(objects, steps)]
    inputs = [x.to(device).requires_grad_() for x in (phi, features, *numbers)]
    forms: dict[str, Callable[..., Any]] = {
        "ours": chan_vese_evolve,
        "coarse": partial(chan_vese_evolve, stride=STRIDE),
        "whole": partial(chan_vese_evolve, kernels="torch"),
        "expanded": _expanded,
        "textbook": _textbook,
    }
    evolve = forms[case]

    def both() -> None:
        for x in inputs:
            x.grad = None
        torch.autograd.backward(evolve(*inputs).square().mean())

    return both


def _textbook(phi: Any, features: Any, lambda1: Any, lambda2: Any, mu: Any, epsilon: Any, dt: Any) -> Any:
    """Homayounfar 2020, eq. 4 and 7-9, as printed."""
    from lsseg.functional import curvature

    for e, t in zip(epsilon.T[..., None, None], dt.T[..., None, None], strict=True):
        h = (0.5 * (1 + 2 / math.pi * (phi / e).atan()))[:, None]
        c1 = (features * h).sum((2, 3), keepdim=True) / h.sum((2, 3), keepdim=True)
        c2 = (features * (1 - h)).sum((2, 3), keepdim=True) / (1 - h).sum((2, 3), keepdim=True)
        inside, outside = (features - c1).square().sum(1), (features - c2).square().sum(1)
        force = mu[:, None, None] * curvature(phi) - lambda1[:, None, None] * inside + lambda2[:, None, None] * outside
        phi = phi + t * (e.square() / math.pi / (e.square() + phi.square())) * force
    return phi


def _expanded(phi: Any, features: Any, lambda1: Any, lambda2: Any, mu: Any, epsilon: Any, dt: Any) -> Any:
    """The same with ‖F - c‖² expanded, and all gradients left to autograd."""
    from lsseg.functional import curvature

    flat, size = features.flatten(2), phi.shape[1:]
    energy = flat.square().sum(1)
    l1, l2 = lambda1[:, None], lambda2[:, None]
    for e, t in zip(epsilon.T[..., None, None], dt.T[..., None, None], strict=True):
        h = 0.5 * (1 + 2 / math.pi * (phi / e).atan()).flatten(1)[:, :, None]
        c1 = (flat @ h)[..., 0] / h.sum(1)
        c2 = (flat @ (1 - h))[..., 0] / (1 - h).sum(1)
        along = (flat.mT @ (l1 * c1 - l2 * c2)[..., None])[..., 0]
        constant = l2 * c2.square().sum(1, keepdim=True) - l1 * c1.square().sum(1, keepdim=True)
        force = ((l2 - l1) * energy + 2 * along + constant).view(-1, *size) + mu[:, None, None] * curvature(phi)
        phi = phi + t * (e.square() / math.pi / (e.square() + phi.square())) * force
    return phi


def _against_library(options: Any) -> dict[str, float]:
    """Seconds of 100 iterations on a noisy image of two regions by scikit-image and by us, and where they disagree."""
    import numpy as np
    import torch
    from skimage.segmentation import chan_vese

    from lsseg.functional import chan_vese_evolve, signed_distance

    side, steps = options.image_size, 100
    y, x = np.mgrid[:side, :side] / side - 0.5
    truth = np.hypot(y, x) < 0.28 + 0.06 * np.cos(4 * np.arctan2(y, x))
    image = np.where(truth, 0.7, 0.3) + 0.08 * np.random.default_rng(0).standard_normal(truth.shape)
    features = torch.from_numpy((image - image.min()) / np.ptp(image)).float()[None, None].to(options.device)
    disc = torch.from_numpy(np.hypot(y, x) < 0.2)[None].to(options.device)
    phi = signed_distance(disc, 14.0) / 14
    one, many = torch.ones(1, device=options.device), torch.ones(1, steps, device=options.device)

    def ours() -> Any:
        return chan_vese_evolve(phi, features, 2 * one, 2 * one, 0.25 * one, many, 2 * many)[0] > 0

    def theirs() -> Any:
        return chan_vese(image, mu=0.05, max_num_iter=steps, tol=0)

    seconds = in_turn({"ours": ours}, options.repeats, options.device) | in_turn({"theirs": theirs}, options.repeats)
    found, known = ours().cpu().numpy(), theirs()
    differs = float(np.mean(found != known))
    return {
        **{name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(pairwise(seconds["theirs"], seconds["ours"])),
        "pixels_that_differ": min(differs, 1 - differs),  # its inside may be our outside
    }


def _show(seconds: Any, memory: Any, library: Any, options: Any) -> None:
    import torch

    where = "CUDA" if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table = Table(
        title=f"{options.objects} objects × {options.features} × {options.size}², N = {options.steps}, "
        f"forward + backward, {where}"
    )
    for column in ("", "ms", "textbook / this", "peak MB", "of textbook"):
        table.add_column(column, justify="right" if column else "left")
    for name in seconds:
        faster = statistics.median(pairwise(seconds["textbook"], seconds[name]))
        table.add_row(
            CASES[name],
            f"{1e3 * statistics.median(seconds[name]):.1f}",
            f"{faster:.1f}×",
            f"{memory[name] / 1e6:.0f}",
            f"{memory[name] / memory['textbook']:.2f}×",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"scikit-image's chan_vese, {options.image_size}², 100 iterations: {1e3 * library['theirs']:.0f} ms, ours "
        f"{1e3 * library['ours']:.0f} ms, {library['ratio']:.0f} times as fast; the segmentations differ at "
        f"{100 * library['pixels_that_differ']:.2f} % of the pixels"
    )
