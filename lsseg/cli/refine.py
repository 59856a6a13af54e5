"""Runs ``lsseg refine``, which moves mask contours to those of the images, by a trained refiner or colours alone."""

import argparse
import shutil
import uuid
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from lsseg.arguments import Arguments
from lsseg.data.pixels import image_size, read_image, read_mask
from lsseg.data.source import images_below, is_image, matched, other_size
from lsseg.errors import InputError, refuse_all
from lsseg.files import write_whole

SHOWN = (1, 4)  # Chan-Vese iterations after which the picture shows the contour


class Job(NamedTuple):
    """Holds one image and its mask.

    Attributes:
        name: Path of the written files below their folders, without the suffix.
        image: Path of the image.
        mask: Path of the mask.
        values: Values in the mask's file outside and inside.
    """

    name: str
    image: Path
    mask: Path
    values: tuple[int, int]


def main(argv: list[str]) -> int:
    """Check all files, refine the masks, and return the exit status."""
    options = _options(argv[1:])
    jobs = _jobs(options.image, options.mask)
    refiner = _refiner(options.refiner) if options.refiner else None
    output: Path = options.output
    if output.exists():
        raise InputError(f"{output} exists already: choose another --output, or remove it")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if refiner is None:
        console.print(
            "Without --refiner, colours alone move the contours. Masks get better if the objects differ in colour from "
            "their surroundings (stained nuclei); other masks get worse (people in a street)."
        )
    # A run that does not end leaves nothing behind, so that it can be started again.
    part = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    try:
        changed = [
            _refine(job, refiner, options, part) for job in track(jobs, "refining", console=console, transient=True)
        ]
        part.replace(output)
    except OSError as error:  # a full disk; the folder that it names will be gone
        if error.filename and Path(error.filename).is_relative_to(part):
            error.filename = str(output / Path(error.filename).relative_to(part))
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    console.print(
        f"masks refined: {len(jobs)}; the masks are in {output / 'masks'}, pictures of them in {output / 'steps'}; "
        f"{100 * sum(changed) / len(changed):.2f} % of the pixels changed between inside and outside"
    )
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = Arguments(
        prog="lsseg refine",
        description="Move the contours of masks to the contours in their images. With --refiner, a trained "
        "ChanVeseRefiner moves them; without it, the classical Chan-Vese model of the colours near the contour. This "
        "model improves a mask if inside and outside differ in colour near the contour, and makes it worse if not.",
    )
    parser.add_argument("image", type=Path, help="an image, or a folder of images")
    parser.add_argument("mask", type=Path, help="its mask with two values, or a folder of masks with the same names")
    parser.add_argument("--output", type=Path, default=Path("refined"), help="the folder to write (default: refined)")
    parser.add_argument(
        "--refiner", type=Path, help="a file of ChanVeseRefiner.save, for a refiner trained on images (channels=3)"
    )
    parser.add_argument(
        "--mu", type=float, default=0.1, help="without --refiner: weight of each pixel of the contour (default: 0.1)"
    )
    parser.add_argument(
        "--reach", type=float, default=6, help="without --refiner: pixels that a contour may move (default: 6)"
    )
    parser.add_argument(
        "--value_range",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="pixel values that become black and white, such as 0 4095 for 12 bits (default: the range of the format)",
    )
    options = parser.parse_args(argv)
    if options.value_range and not options.value_range[0] < options.value_range[1]:
        raise InputError(f"--value_range must be two numbers, the smaller one first, not {options.value_range}")
    for key in ("mu", "reach"):
        if not 0 < getattr(options, key) < float("inf"):
            raise InputError(f"--{key} must be a positive number, not {getattr(options, key)}")
    return options


def _jobs(image: Path, mask: Path) -> list[Job]:
    """Check the files of all pairs and return the pairs; one ``InputError`` names all problems."""
    for path in (image, mask):
        if not path.exists():
            raise InputError(f"{path} does not exist")
    if image.is_dir() != mask.is_dir():
        raise InputError(f"{image} and {mask} must be two files, or two folders")
    if image.is_dir():
        pairs = matched(images_below(image), mask, "")
        alone = [path for name, path in images_below(mask).items() if name not in pairs]
        refuse_all(str(mask), [f"{path} has no image in {image}" for path in alone])
    elif is_image(image):
        pairs = {image.stem: (image, mask)}
    else:
        raise InputError(f"{image} is not an image")
    jobs, problems = [], []
    for name, (file, its_mask) in pairs.items():
        try:
            jobs.append(Job(name, file, its_mask, _values(file, its_mask)))
        except InputError as error:
            problems.append(str(error))
    refuse_all(str(mask), problems)
    return jobs


def _values(image: Path, mask: Path) -> tuple[int, int]:
    """Return a mask's values outside and inside; refuse a mask that does not fit its image."""
    values = read_mask(mask)
    size = image_size(image)
    if size != values.shape:
        raise InputError(other_size(image, size, mask, values.shape))
    found = np.unique(values)
    if len(found) > 2:
        shown = ", ".join(map(str, found[:6])) + (", …" if len(found) > 6 else "")
        raise InputError(f"{mask} holds {len(found)} values ({shown}); a mask to be refined has two")
    low, high = int(found[0]), int(found[-1])
    if low < 0 or high > 65535:
        raise InputError(f"{mask} holds the values {low} and {high}; a mask to be refined has values in 0..65535")
    if low == high:  # everything is outside (value 0) or inside
        return (0, 255) if low == 0 else (0, low)
    return low, high


def _refiner(path: Path):  # type: ignore[no-untyped-def]
    from lsseg.models import ChanVeseRefiner

    if not path.is_file():
        raise InputError(f"--refiner {path} is not a file")
    try:
        refiner = ChanVeseRefiner.load(path)
    except ValueError as error:
        raise InputError(f"--refiner {path}: {error}") from error
    except Exception as error:  # torch's reader has an error of its own for every way in which a file is none of its
        raise InputError(f"--refiner {path} is not a file of ChanVeseRefiner.save") from error
    if refiner.channels != 3 or refiner.stride != 1:
        raise InputError(
            f"--refiner {path} needs features with {refiner.channels} channels and stride {refiner.stride}, "
            "but an image has 3 channels and stride 1"
        )
    return refiner


def _refine(job: Job, refiner, options: argparse.Namespace, output: Path) -> float:  # type: ignore[no-untyped-def]
    """Refine one mask, write the result and a picture, and return the share of pixels that changed sides."""
    import torch

    from lsseg.callbacks.drawing import evolution_panel
    from lsseg.functional import chan_vese_segment, tsdf
    from lsseg.tasks.base import EvolvingObject

    pixels = read_image(job.image, options.value_range)
    inside = torch.from_numpy(read_mask(job.mask) == job.values[1])[None]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    numbers, features, labels = None, image[0], None
    with torch.no_grad():
        if refiner is None:
            segment = partial(chan_vese_segment, image, inside, options.mu, reach=options.reach)
            # Every call starts from the mask, so calls with fewer steps return the contours on the way to the last one.
            steps = [2 * inside.float() - 1, *(segment(steps=count) for count in SHOWN), segment()]
            after, labels = steps[-1] > 0, ["mask", *(f"after {count}" for count in SHOWN), "refined"]
        else:
            given = {"distance": lambda: tsdf(inside, refiner.truncation), "logits": lambda: 4.0 * (2 * inside - 1.0)}
            refined = refiner(given.get(refiner.given, inside.float)(), image)
            steps, after = refined.steps, refined.mask
            numbers, features = refined.numbers, refined.features[0]
    _write_mask(np.where(after[0].numpy(), job.values[1], job.values[0]), output / "masks" / f"{job.name}.png")
    height, width = inside.shape[1:]
    shown = [step[0] for step in steps]
    thing = EvolvingObject(job.mask.name, (0, 0, width, height), shown, features, numbers, labels)
    write_whole(evolution_panel(pixels, [thing], job.name).savefig, output / "steps" / f"{job.name}.png")
    return float((after != inside).float().mean())


def _write_mask(values: npt.NDArray[np.integer], path: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16))
    write_whole(picture.save, path)
