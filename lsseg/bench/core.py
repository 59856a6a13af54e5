"""Benchmarks the numeric core: the losses, the evolution, distances, and the classical segmentation."""

import functools
import math
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from rich.console import Console
from skimage.segmentation import chan_vese as skimage_chan_vese

from lsseg.bench import textbook
from lsseg.bench.harness import Benchmark, Case, in_turn, ratio
from lsseg.functional import (
    chan_vese_energy,
    chan_vese_evolve,
    chan_vese_segment,
    cross_entropy_level_set,
    largest_class,
    level_set_energy,
    regions,
    signed_distance,
)
from lsseg.functional.distance import windowed_signed_distance

STRIDE = 4  # stride of the feature head of LevelSet R-CNN


@functools.cache
def _labelled(shape: tuple[int, ...], dtype: str, void: float, device: str) -> tuple[Any, Any]:
    """Return logits that require a gradient, and labels."""
    g = torch.Generator().manual_seed(0)
    images, classes, *space = shape
    logits = torch.randn(images, classes, *space, generator=g).to(device, getattr(torch, dtype)).requires_grad_()
    target = torch.randint(0, classes, (images, *space), generator=g)
    target[torch.rand(target.shape, generator=g) < void] = 255
    return logits, target.to(device)


def _loss(name: str, options: Any) -> Case:
    """Return the forward and backward pass of a loss."""
    logits, target = _labelled(tuple(options.shape), options.dtype, options.void, options.device)
    logits.grad = None  # Another case's gradient would count as memory in use before this one.

    def fused(kernels: Any = "auto") -> Any:
        cross_entropy, energy = cross_entropy_level_set(logits, target, kernels=kernels)
        return cross_entropy + 0.67 * energy

    def of_smp(loss: Any) -> Any:
        scores = logits.flatten(2).unsqueeze(2).float()  # smp's Lovász loss takes no half precision
        return loss("multiclass", ignore_index=255)(scores, target.flatten(1).unsqueeze(1))

    losses: dict[str, Case] = {
        "cross_entropy": lambda: F.cross_entropy(logits, target, ignore_index=255),
        "level_set": lambda: level_set_energy(logits, target),
        "fused": fused,
        "whole": lambda: fused("torch"),
        "textbook": lambda: textbook.level_set_energy(logits, target),
        "dice": lambda: of_smp(smp.losses.DiceLoss),
        "lovasz": lambda: of_smp(smp.losses.LovaszLoss),
    }

    def both() -> None:
        logits.grad = None
        losses[name]().backward()

    return both


def _bandwidth(options: Any, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print and return the bandwidth of a copy on a GPU, and the share of it that the losses reach.

    The share assumes that a loss reads the logits twice and writes their gradient once.
    """
    if options.device == "cpu":
        return {}
    source = torch.empty(2**28, dtype=getattr(torch, options.dtype), device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.itemsize / min(in_turn({"": lambda: target.copy_(source)}, 10, "cuda")[""])
    moved = 3 * math.prod(options.shape) * source.itemsize
    shares = {name: moved / min(seconds[name]) / copied for name in ("level_set", "fused")}
    said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    Console(markup=False).print(
        f"A copy moves {copied / 1e12:.2f} TB/s. "
        f"Share of it that the losses reach, if they make three passes over the logits: {said}."
    )
    return {"copied_bytes_per_second": copied, "share_of_bandwidth": shares}


def _evolution(name: str, options: Any) -> Case:
    """Return the forward and backward pass of an evolution, with gradients for all inputs."""
    objects, steps, size = options.objects, options.steps, (options.size, options.size)
    g = torch.Generator().manual_seed(0)
    phi = F.interpolate(torch.randn(objects, 1, 6, 6, generator=g), size, mode="bicubic")[:, 0].clamp(-1, 1)
    cells = [-(-side // STRIDE) for side in size] if name == "coarse" else size
    features = torch.randn(objects, options.features, *cells, generator=g) / 4
    numbers = [torch.ones(objects), torch.ones(objects), torch.full((objects,), 0.25)]
    numbers += [torch.ones(objects, steps), torch.ones(objects, steps)]
    inputs = [x.to(options.device).requires_grad_() for x in (phi, features, *numbers)]
    forms: dict[str, Any] = {
        "ours": chan_vese_evolve,
        "coarse": functools.partial(chan_vese_evolve, stride=STRIDE),
        "whole": functools.partial(chan_vese_evolve, kernels="torch"),
        "textbook": textbook.chan_vese,
    }

    def both() -> None:
        for x in inputs:
            x.grad = None
        torch.autograd.backward(forms[name](*inputs).square().mean())

    return both


def partition(classes: int, size: Any, device: str) -> Any:
    """Return smooth scores, 1×C×H×W, that give every class a few regions, as in a picture."""
    coarse = torch.randn(1, classes, 12, 12, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size, mode="bicubic").mul(4).to(device)


def _distances(name: str, options: Any) -> Case:
    planes = regions(largest_class(partition(options.classes, options.size, options.device)), options.classes)[0]
    form = windowed_signed_distance if name == "windowed" else signed_distance
    return lambda: form(planes, options.reach)


@functools.cache
def _disc(height: int, width: int, spread: float) -> Any:
    """Return a noisy disc, 1×1×H×W."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - height / 2) ** 2 + (x - 0.4 * width) ** 2 < (0.3 * min(height, width)) ** 2
    noise = torch.randn(height, width, generator=torch.Generator().manual_seed(0))
    return (0.3 + 0.4 * inside + spread * noise).clamp(0, 1)[None, None]


def _segment(name: str, options: Any) -> Case:
    image = _disc(*options.size, options.noise)
    if name == "ours":
        return lambda: chan_vese_segment(image, mu=options.mu) > 0
    plain = image[0, 0].double().numpy()
    return lambda: torch.from_numpy(skimage_chan_vese(plain, mu=options.mu))[None]


def _energies(options: Any, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the energies of both results, and print the ratios of time and energy."""
    image = _disc(*options.size, options.noise)
    energies = {name: float(chan_vese_energy(image, _segment(name, options)(), options.mu)) for name in seconds}
    faster = ratio(seconds["scikit_image"], seconds["ours"])
    share = energies["ours"] / energies["scikit_image"]
    Console(markup=False).print(
        f"chan_vese_segment is {faster:.1f}× faster than scikit-image; "
        f"its energy is {share:.4f} times that of scikit-image."
    )
    return {"energies": energies}


BENCHMARKS = {
    "losses": Benchmark(
        about="the level-set loss compared with cross-entropy, its textbook form and its rivals",
        cases={
            "cross_entropy": "cross-entropy (torch's)",
            "level_set": "level set",
            "fused": "both, fused",
            "whole": "both, fused, without Triton",
            "textbook": "level set, textbook (dense, one-hot, autograd)",
            "dice": "Dice (smp's)",
            "lovasz": "Lovász (smp's)",
        },
        baseline="cross_entropy",
        make=_loss,
        options={"shape": [4, 21, 512, 512], "dtype": "float32", "void": 0.0},
        least={"void": 0},
        most={"void": 0.99},
        choices={"dtype": ("float32", "bfloat16", "float16")},
        on_gpu=("--shape", "8", "19", "512", "1024"),
        title="forward + backward, {dtype} logits {shape}",
        repeats=5,
        gpu_cases=frozenset({"whole"}),
        late=frozenset({"dice", "lovasz"}),
        small=lambda o: {"shape": [1, o.shape[1], 8, 8, *[1] * (len(o.shape) - 4)]},
        more=_bandwidth,
    ),
    "chan_vese": Benchmark(
        about="the unrolled Chan–Vese evolution compared with its textbook form",
        cases={
            "textbook": "textbook, autograd",
            "ours": "ours",
            "coarse": f"ours, features of stride {STRIDE} (never enlarged)",
            "whole": "ours, without Triton",
        },
        baseline="textbook",
        make=_evolution,
        options={"objects": 100, "features": 64, "size": 112, "steps": 3},
        least={"size": 8},
        title="forward + backward, {objects} objects × {features} × {size}², N = {steps}",
        gpu_cases=frozenset({"whole"}),
    ),
    "distances": Benchmark(
        about="the signed distances of all regions of one label map",
        cases={"windowed": "minimum over a window, whole tensors", "ours": "signed_distance"},
        baseline="windowed",
        make=_distances,
        options={"classes": 19, "size": (512, 512), "reach": 10.0},
        least={"classes": 2, "size": 16},
        title="signed distances, C = {classes}, {size}, τ = {reach}",
        repeats=5,
    ),
    "segment": Benchmark(
        about="the classical Chan–Vese segmentation compared with scikit-image's",
        cases={"scikit_image": "scikit-image", "ours": "chan_vese_segment"},
        baseline="scikit_image",
        make=_segment,
        options={"size": (512, 512), "mu": 0.1, "noise": 0.15},
        least={"size": 8, "mu": 1e-3, "noise": 0},
        title="a noisy disc of {size}, μ = {mu}",
        more=_energies,
    ),
}
