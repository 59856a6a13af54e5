"""Benchmarks the data path: its images per second beside those of only decoding the same files."""

import functools
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from torch.utils.data import DataLoader

from lsseg.bench.harness import Benchmark, Case
from lsseg.data import FolderSegmentation


@functools.cache
def _written(count: int, height: int, width: int) -> tempfile.TemporaryDirectory[str]:
    """Write smooth pictures and blocky label maps, which compress about like real ones, and delete them at exit."""
    made = tempfile.TemporaryDirectory(prefix="lsseg-bench-")
    folder, g = Path(made.name), np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    (folder / "classes.yaml").write_text(f"classes: [{', '.join(f'class{k}' for k in range(19))}]\n")
    for i in range(count):
        small = g.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        mask = np.kron(g.integers(0, 19, (height // 64 + 1, width // 64 + 1), np.uint8), np.ones((64, 64), np.uint8))
        cv2.imwrite(str(folder / "images" / f"{i:04d}.jpg"), image)
        cv2.imwrite(str(folder / "masks" / f"{i:04d}.png"), mask[:height, :width])
    return made


def _data(options: Any, cache: Any = None) -> FolderSegmentation:
    """Return the data module of a folder of images as a user has it, with all images in the training split."""
    folder = options.data or _written(options.images, *options.size).name
    shares: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0, "scale": (0.5, 1.5)}
    sizes: dict[str, Any] = {"crop_size": tuple(options.crop), "batch_size": options.batch}
    return FolderSegmentation(folder, **shares, **sizes, num_workers=options.workers, cache=cache)


def _pass(name: str, options: Any) -> Case:
    """Return one pass over all images."""
    data = _data(options, "ram" if name == "cached" else None)
    source = data.source("train")
    if name == "decoding":
        return lambda: _exhaust(source.read(i) for i in range(len(source)))
    if name in ("loader", "cached"):
        return functools.partial(_exhaust, data.train_dataloader())
    samples = data.samples(source, training=name == "samples")
    if name == "samples":
        return lambda: _exhaust(samples[0, i] for i in range(len(source)))
    kept = options.workers > 0
    loader: Any = DataLoader(samples, 1, num_workers=options.workers, persistent_workers=kept, collate_fn=data.collate)
    return functools.partial(_exhaust, loader)


def _exhaust(things: Iterable[Any]) -> None:
    for _ in things:
        pass


def _rates(options: Any, seconds: dict[str, list[float]]) -> dict[str, Any]:
    images = len(_data(options).source("train"))
    rates = {name: images / statistics.median(times) for name, times in seconds.items()}
    said = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    Console(markup=False, highlight=False).print(f"Images per second, for {images} images: {said}.")
    return {"images_per_second": rates, "images": images}


BENCHMARKS = {
    "data": Benchmark(
        about="the data path compared with only decoding its files",
        cases={
            "decoding": "only decoding image and mask, one process",
            "samples": "samples: decoded, checked, scaled, cropped, flipped, coloured; one process",
            "loader": "batches from the loader's processes",
            "cached": "the same, with decoded images in memory",
            "evaluation": "whole images from the loader's processes",
        },
        baseline="decoding",
        make=_pass,
        options={"size": (1024, 2048), "crop": (512, 512), "images": 32, "workers": 2, "batch": 4, "data": ""},
        least={"size": 64, "crop": 16, "workers": 0},
        title="crops of {crop}, batches of {batch}, {workers} workers",
        memory=False,
        more=_rates,
    ),
}
