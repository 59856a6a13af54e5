"""``lsseg bench data``: images per second of the data path, against decoding the same files and nothing else."""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lsseg.cli.measure import in_turn, peak_memory
from lsseg.errors import InputError

CASES = {
    "decoding": "decoding image and mask, nothing else, one process",
    "samples": "samples: decoded, checked, scaled, cropped, flipped, coloured; one process",
    "loader": "batches from the loader's processes",
    "evaluation": "whole images from the loader's processes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--crop", type=int, nargs=2, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--images", type=int, default=32, help="files of each kind (default: 32)")
    parser.add_argument("--workers", type=int, default=2, help="the loader's processes (default: 2)")
    parser.add_argument("--batch", type=int, default=4, help="images of a batch (default: 4)")
    parser.add_argument("--data", metavar="FOLDER", help="images/, masks/ and classes.yaml instead of generated files")
    parser.set_defaults(repeats=3)


def check(options: Any) -> None:
    """Refuse options out of range."""
    if min(*options.size, *options.crop) < 16 or options.workers < 0 or not 1 <= options.batch <= options.images:
        raise InputError(
            "expected --size and --crop of at least 16 16, --workers of at least 0, --batch in 1..--images"
        )


def run(options: Any, argv: list[str]) -> dict[str, Any]:
    """Measure and print; returns the figures."""
    with tempfile.TemporaryDirectory() as folder:
        data = _data(options, Path(folder))
        images = len(data.source("train"))
        seconds = in_turn({name: _case(name, data) for name in CASES}, options.repeats)
    rates = {name: images / statistics.median(times) for name, times in seconds.items()}
    _show(rates, images, options)
    return {"images_per_second": rates, "seconds": seconds, "images": images}


def memory_of(case: str, options: Any) -> int:
    """Peak memory of one pass over the data in this process, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        return peak_memory(_case(case, _data(options, Path(folder))))


def _data(options: Any, folder: Path) -> Any:
    """A folder of images as a user has it, all of which are trained on."""
    from lsseg.data import FolderSegmentation

    if options.data is None:
        _write(folder, options.images, options.size)
    return FolderSegmentation(
        str(options.data or folder),
        val_fraction=0.0,
        test_fraction=0.0,
        crop_size=tuple(options.crop),
        scale=(0.5, 1.5),
        batch_size=options.batch,
        num_workers=options.workers,
    )


def _write(folder: Path, count: int, size: list[int]) -> None:
    """Smooth pictures and label maps of blocks: they compress about as real ones do."""
    import cv2
    import numpy as np

    for part in ("images", "masks"):
        (folder / part).mkdir()
    (folder / "classes.yaml").write_text(f"classes: [{', '.join(f'class{k}' for k in range(19))}]\n")
    g = np.random.default_rng(0)
    for i in range(count):
        small = g.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
        image = cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
        mask = np.kron(g.integers(0, 19, (size[0] // 64 + 1, size[1] // 64 + 1), np.uint8), np.ones((64, 64), np.uint8))
        cv2.imwrite(str(folder / "images" / f"{i:04d}.jpg"), image)
        cv2.imwrite(str(folder / "masks" / f"{i:04d}.png"), mask[: size[0], : size[1]])


def _case(name: str, data: Any) -> Callable[[], None]:
    """One pass over all images."""
    source = data.source("train")
    samples = data.samples(source, training=True)
    passes: dict[str, Callable[[], None]] = {
        "decoding": lambda: _exhaust(source.read(i) for i in range(len(source))),
        "samples": lambda: _exhaust(samples[0, i] for i in range(len(source))),
        "loader": partial(_exhaust, data.train_dataloader()),
        "evaluation": partial(_exhaust, _evaluation(data, source)),
    }
    return passes[name]


def _exhaust(things: Iterable[Any]) -> None:
    for _ in things:
        pass


def _evaluation(data: Any, source: Any) -> Any:
    from torch.utils.data import DataLoader

    workers = data.num_workers
    samples = data.samples(source, training=False)
    return DataLoader(samples, 1, num_workers=workers, persistent_workers=workers > 0, collate_fn=data.collate)


def _show(rates: dict[str, float], images: int, options: Any) -> None:
    import os

    size = "files of the folder" if options.data else f"{options.size[0]}×{options.size[1]} JPEG and PNG"
    crop = f"crops {options.crop[0]}×{options.crop[1]} at ½ to 1½ of the size"
    table = Table(title=f"{images} images, {size}, {crop}, {options.workers} workers, {os.cpu_count()} CPU cores")
    for column in ("", "images/s", "of decoding"):
        table.add_column(column, justify="right" if column else "left")
    for name, label in CASES.items():
        table.add_row(label, f"{rates[name]:.1f}", f"{rates[name] / rates['decoding']:.2f}×")
    Console(highlight=False).print(table)
