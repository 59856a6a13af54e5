"""Runs ``lsseg init``, which writes a commented configuration for images and masks and prints commands that use it."""

import shlex
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from rich.console import Console

from lsseg.arguments import Arguments
from lsseg.data import CocoFolder, FolderSegmentation, SegmentationData
from lsseg.data.folder import by_split
from lsseg.data.module import SPLITS
from lsseg.data.object_classes import FILE
from lsseg.data.pixels import LOSSY, color_codes, holds_colors, image_size, read_colors, read_mask
from lsseg.data.source import FilePairs, files_below, hint_at, images_below, not_read
from lsseg.errors import InputError, refuse_all
from lsseg.files import write_text
from lsseg.models.encoder import packaged_weights

DEFAULTS = {"images_folder": "images", "masks_folder": "masks"}
VOID = "the value 255 in the masks is treated as void; if it is a class, list it in {file}"
MASKS = 200  # masks that are read, at most, to guess the classes from their values
MOST_CLASSES = 64  # different values in the masks; if there are more, they are not labels
MOST_NAMED = 12  # folders in a message
SHORT = 512  # pixels; the longest side of a crop
EPOCHS = 60
LITE = "tu-tf_efficientnet_lite0"  # an installed package may hold the weights of this encoder
TEMPLATE = """# A U-Net for the images in {root}, made by `lsseg init`.
# Train and test:  {fit}
# Segment photos:  {predict}
# Check all files first:  lsseg data check {file}
{found}
seed_everything: 0
trainer:
  max_steps: {steps}  # about {epochs} epochs; increase it if the validation score still rises at the end
  val_check_interval: {interval}
  check_val_every_n_epoch: null
  accelerator: auto  # uses a GPU if there is one
  precision: 32-true  # bf16-mixed is faster on a GPU
  default_root_dir: {run}  # the run's folder
model:
  class_path: LevelSetLossTask  # cross-entropy + level-set loss; SegmentationTask has cross-entropy alone
  init_args:
    network:
      class_path: SmpNet
      init_args:
        architecture: unet
        encoder_name: {encoder}
        encoder_weights: imagenet  # fetched once; null starts from random weights
    optimizer: adamw
    lr: 0.0005
data:
  class_path: {data}
  init_args:
    root: {folder}{keys}
    crop_size: [{height}, {width}]  # for training; validation and test use whole images
    scale: [0.75, 1.5]
    batch_size: {batch}
    eval_batch_size: 1  # more than 1 needs images of one size
    num_workers: null  # loader processes: as many as there are CPU cores, at most 8
"""


class Layout(NamedTuple):
    """Describes what a folder holds.

    Attributes:
        data: The data set of the folder.
        lines: Lines about the folder, for the head of the configuration and for the screen.
        keys: Lines of YAML with the data's keys that differ from the defaults.
        size: Smallest height and smallest width of the training images (of the first 50 for COCO's format).
        images: Number of training images.
    """

    data: SegmentationData
    lines: list[str]
    keys: list[str]
    size: tuple[int, int]
    images: int


def main(argv: list[str]) -> int:
    """Look at a folder, write its configuration, and return the exit status."""
    parser = Arguments(
        prog="lsseg init",
        description="Write a configuration for a folder of images and masks, or for an export in COCO's format.",
    )
    parser.add_argument(
        "folder", type=Path, help="folder that holds images/ and masks/, or train/_annotations.coco.json"
    )
    for key, folder in DEFAULTS.items():
        what = f"name of the folder with the {folder}, for the key data.{key} (default: {folder})"
        parser.add_argument(f"--{key}", default=folder, help=what)
    parser.add_argument(
        "--output", type=Path, help="the file to write (default: the folder's name with .yaml, in the current folder)"
    )
    options = parser.parse_args(argv[1:])
    if not options.folder.is_dir():
        raise InputError(f"{options.folder} is not a folder")
    root = options.folder.resolve()
    output = options.output or Path(f"{root.name}.yaml")
    if output.exists():
        raise InputError(f"{output} exists already: choose another --output, or remove it")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    folders = {key: getattr(options, key) for key in DEFAULTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again from the data set itself
        made, said = (None, []) if (root / "train" / FILE).is_file() else _make_classes(root, folders)
    try:
        layout = _look(root, folders)
        write_text(output, _filled(layout, root, output))
    except BaseException:
        if made is not None:  # a failed command leaves no file behind
            made.unlink()
        raise
    for line in (*said, *layout.lines):
        console.print(line)
    console.print(f"wrote {output}; next:")
    for command in _commands(root, output):
        console.print(f"  {command}")
    return 0


def _commands(root: Path, output: Path) -> tuple[str, str]:
    """Return the commands that train and that predict, as a shell takes them."""
    config, checkpoint = (shlex.quote(f"runs/{root.name}/{name}") for name in ("config.yaml", "last.ckpt"))
    fit = f"lsseg fit --config {shlex.quote(str(output))} --test_after_fit true"
    return fit, f"lsseg predict --config {config} --ckpt_path {checkpoint} --data.images PHOTOS"


def _scalar(text: str) -> str:
    """Return a text as YAML reads it, in quotes where it would be something else without."""
    return yaml.safe_dump(text, width=10**6, allow_unicode=True).removesuffix("...\n").rstrip("\n")


def _look(root: Path, folders: dict[str, str]) -> Layout:
    exported = (root / "train" / FILE).is_file()
    images, masks = folders.values()
    data = (
        CocoFolder(str(root)) if exported else FolderSegmentation(str(root), images_folder=images, masks_folder=masks)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sources = {split: data.source(split) for split in SPLITS if split != "test" or data.has_test}
    counts = {split: len(source) for split, source in sources.items()}
    for split in ("train", "val"):
        if not counts[split]:
            raise InputError(f"{root}: the {split} split has no image; all splits together have {sum(counts.values())}")
    keys = (
        [] if exported else [f"{key}: {_scalar(folder)}" for key, folder in folders.items() if folder != DEFAULTS[key]]
    )
    if not data.has_test:
        keys.append("test_split: val  # there are no test images")
    source = sources["train"]
    if isinstance(source, FilePairs):
        sizes = [image_size(image) for image, _ in source.pairs]
    else:
        sizes = [source.read(index)[0].shape[:2] for index in range(min(len(source), 50))]
    heights, widths = zip(*sizes, strict=True)
    said = f"{min(heights)}×{min(widths)}"
    if len(set(sizes)) > 1:
        said += f" to {max(heights)}×{max(widths)}"
    lines = [
        f"images: {', '.join(f'{count} {split}' for split, count in counts.items())}; {said} pixels",
        f"classes: {', '.join(data.class_names)}",
    ]
    lines += dict.fromkeys(str(warning.message) for warning in caught)
    if not data.has_test:
        lines.append("there are no test images: the validation images are scored instead")
    return Layout(data, lines, keys, (min(heights), min(widths)), counts["train"])


def _exports(root: Path) -> str:
    """Return a hint to what a folder without images/ holds: a JSON file in COCO's format, or other folders."""
    found = next((path for path in sorted(root.rglob("*.json")) if path.name != FILE and _is_coco(path)), None)
    if found is None:
        there = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        return f"; {root.name} holds the folders {', '.join(there)}" if 0 < len(there) <= MOST_NAMED else ""
    return (
        f". {found} may be in COCO's format: put it and its images into train/, as train/{FILE}, and the same for "
        "valid/ and test/; or see the keys of `--data CocoInstances`"
    )


def _is_coco(path: Path) -> bool:
    """Return whether a JSON file begins as COCO's do: LabelMe and others write JSON files, too."""
    with path.open("rb") as file:
        begin = file.read(1 << 20)
    return b'"annotations"' in begin or b'"images"' in begin


def _filled(layout: Layout, root: Path, output: Path) -> str:
    steps, batch = max(200, EPOCHS * layout.images // 8), min(8, layout.images)
    # The deepest features of one crop of 32×32 are a single value per channel, which batch-norm cannot take.
    least = 32 if batch > 1 else 64
    height, width = (max(least, min(SHORT, side) // 32 * 32) for side in layout.size)
    fit, predict = _commands(root, output)
    return TEMPLATE.format(
        root=root,
        folder=_scalar(str(root)),
        fit=fit,
        predict=predict,
        keys="".join(f"\n    {key}" for key in layout.keys),
        file=shlex.quote(str(output)),
        run=_scalar(f"runs/{root.name}"),
        found="\n".join(f"# {line}" for line in layout.lines),
        steps=steps,
        epochs=steps * batch // layout.images,
        interval=max(50, steps // 10),
        encoder=LITE if packaged_weights(LITE, "imagenet") else "resnet34",
        batch=batch,
        data=type(layout.data).__name__,
        height=height,
        width=width,
    )


def _make_classes(root: Path, folders: dict[str, str]) -> tuple[Path | None, list[str]]:
    """Write ``classes.yaml`` from the values in the masks if it is missing; return its path and lines to print."""
    file = root / "classes.yaml"
    if file.exists():
        return None, []
    images, masks = folders.values()
    parts = by_split(path.name for path in root.iterdir() if (path / images).is_dir())
    place = root / parts["train"] if "train" in parts and not (root / images).is_dir() else root
    for key, folder in folders.items():
        if not (place / folder).is_dir():
            raise InputError(
                f"{root} has no {folder}/: put images into images/ and masks of the same names into masks/, or name "
                f"their folder with --{key}{_exports(root)}"
            )
    if place == root:
        images_below(root / images)
    below = place / masks
    files = files_below(below)[:MASKS]
    if not files:
        raise InputError(f"{below} holds no image; masks must be images, such as PNG files{hint_at(not_read(below))}")
    colored = any(holds_colors(path) for path in files[:1])
    values: set[int] = set()
    problems = []
    for path in files:
        try:
            values |= set(np.unique(color_codes(read_colors(path)) if colored else read_mask(path)).tolist())
        except InputError as error:
            problems.append(str(error))
    if values and not colored and not 0 <= min(values) <= max(values) <= 65535:
        problems.append(f"the masks hold the values {min(values)} to {max(values)}, but labels must be 0..65535")
    refuse_all(f"{file} is missing, and the classes cannot be read from the masks", problems)
    labels = sorted(value for value in values if colored or value != 255 or len(values) == 2)
    what = "colours" if colored else "values"
    lossy = any(path.suffix.lower() in LOSSY for path in files)
    if not 2 <= len(labels) <= (2 if lossy else MOST_CLASSES):
        advice = "save the masks as PNG, because JPEG changes their values" if lossy else "write the file yourself"
        said = f"the masks hold {len(labels)} different {what}, but 2 to {MOST_CLASSES} can be classes"
        raise InputError(f"{file} is missing, and {said}: {advice}")
    shown = {label: str([label >> 16, label >> 8 & 255, label & 255]) if colored else str(label) for label in labels}
    lines = [f"# Made by `lsseg init` from the {what} in the masks: give each class its name.", "classes:"]
    for number, label in enumerate(labels):
        name = "background" if label == 0 else f"class{number if colored else label}"
        lines.append(f"  {name}: {shown[label]}")
    ignored = 255 in values and 255 not in labels
    if ignored:
        lines.append("void: [255]  # pixels that are ignored; if 255 is a class, list it above and delete this line")
    if colored:
        lines.append("void: []  # to ignore the pixels of a colour, move the colour here, for example [[0, 0, 0]]")
    write_text(file, "\n".join(lines) + "\n")
    said = f"wrote {file}: the masks hold {', '.join(shown.values())}; give the classes their names there"
    return file, [said, *([VOID.format(file=file)] if ignored else [])]
