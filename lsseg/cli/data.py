"""Runs ``lsseg data``, which lists the data sets and how to get them, fetches one, or checks all its files."""

import json
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

import lsseg.data
from lsseg.arguments import Arguments
from lsseg.data import DataModule
from lsseg.data.instances import Instances
from lsseg.data.loading import check_pair
from lsseg.data.module import SPLITS, Split
from lsseg.data.object_classes import FILE
from lsseg.data.root import Origin, data_root, fetch
from lsseg.data.source import IGNORE_INDEX
from lsseg.errors import ArgumentError, InputError
from lsseg.failures import Place, located
from lsseg.files import read_yaml
from lsseg.parser import Parser, own_errors

FILES = (".png", ".jpg", ".json", ".mat")


def data_sets() -> dict[str, type[DataModule[Any]]]:
    """Return the data sets that have an ``origin``, by the names that this command uses for them."""
    exported = (getattr(lsseg.data, name) for name in lsseg.data.__all__)
    known = [one for one in exported if isinstance(one, type) and vars(one).get("origin")]
    return {vars(one)["origin"].name: one for one in known}


def origin_of(data: type[DataModule[Any]]) -> Origin:
    """Return where a data set comes from and what a complete copy holds."""
    assert data.origin is not None
    return data.origin


def main(argv: list[str]) -> int:
    """List the data sets, fetch one, or check one; return the exit status."""
    if argv[1:2] == ["check"]:
        return check(argv[2:])
    parser = Arguments(
        prog="lsseg data",
        description="List the data sets and their folders; with a name, fetch that data set if it is missing. "
        "`lsseg data check CONFIG` reads every file of a data set.",
    )
    parser.add_argument("name", nargs="?", choices=[*sorted(data_sets()), "check"], help="the data set to fetch")
    parser.add_argument("--root", type=Path, help="where to put it (default: $LSSEG_DATA/NAME, or data/NAME)")
    parser.add_argument("--url", help="another address of the same archive")
    options = parser.parse_args(argv[1:])
    console = Console(markup=False)
    if options.name is None:
        console.print(_overview())
        console.print(
            "Data sets are expected in the folder that LSSEG_DATA names, else ./data; data.root sets another folder.",
            highlight=False,
        )
        return 0
    data = data_sets()[options.name]
    known, shown = origin_of(data), data.__name__
    root = options.root or data_root(known.folder)
    if root.exists():
        problem = _incomplete(known, root)
        if problem:
            raise InputError(f"{root} exists but {problem}; remove it, or choose another place with --root")
        console.print(f"{shown} is already complete in {root}")
        return 0
    if known.archive is None:
        raise InputError(f"{shown} must be put into {root} by hand, from {known.source} ({known.terms})")
    archive = known.archive._replace(url=options.url) if options.url else known.archive
    fetch(archive, root, lambda folder: _incomplete(known, folder), console)
    console.print(f"{shown} is now complete in {root}. Terms: {known.terms}")
    return 0


def _overview() -> Table:
    table = Table()
    for column in ("data set", "where", "state", "how to get it"):
        table.add_column(column, overflow="fold")
    for name in ("SyntheticShapes", "SyntheticInstances"):
        table.add_row(name, "generated", Text("always there", "green"), "–")
    for name, data in data_sets().items():
        known = origin_of(data)
        root = data_root(known.folder)
        problem = _incomplete(known, root) if root.is_dir() else "missing"
        state = Text(problem, "yellow") if problem else Text("complete", "green")
        if not problem and (lacking := _lacking(known.extra, root)):
            state = Text.assemble(state, f"; some settings need more files: {lacking}")
        verb = "fetches it" if known.archive else "says how"
        table.add_row(data.__name__, str(root), state, f"`lsseg data {name}` {verb} ({known.terms})")
    folder = "your own folder with images/, masks/, classes.yaml"
    table.add_row("FolderSegmentation", "data.root", "yours", folder)
    return table


def _incomplete(known: Origin, root: Path) -> str | None:
    """Return what is missing from a copy, or None if it is complete in one of its layouts.

    An incomplete copy is described by the files of the first layout.
    """
    root = next((root / inner for inner in known.unpacked if (root / inner).is_dir()), root)
    problem = _lacking(known.counts, root)
    return None if problem and known.layout and not _lacking(known.layout, root) else problem


def _lacking(counts: dict[str, int], root: Path) -> str | None:
    for part, expected in counts.items():
        # A part is a pattern, a file or a folder. With ../ in front it lies beside this folder.
        place, name = (root.parent, part[3:]) if part.startswith("../") else (root, part)
        files = (
            place.glob(name) if "*" in name else [place / name] if name.endswith(FILES) else (place / name).glob("*")
        )
        found = sum(1 for path in files if path.is_dir() or (path.suffix.lower() in FILES and path.is_file()))
        if found != expected:
            return f"{part} has {found} files of {expected}" if expected > 1 else f"{part} is missing"
    return None


SHOWN = 50  # problems that are printed


@dataclass
class Found:
    """Counts what a split holds.

    Attributes:
        images: Number of images that could be read.
        sizes: How often each size (height, width) occurs.
        counts: Number of pixels of each label, including void; for instances, objects of each label, without crowds.
        with_class: Number of images in which each label occurs.
        crowds: Number of crowds, which are groups of objects with one common mask.
        bare: Number of images without any object, or with void pixels only.
        problems: Messages about what is wrong.
    """

    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    counts: Counter[int] = field(default_factory=Counter)
    with_class: Counter[int] = field(default_factory=Counter)
    crowds: int = 0
    bare: int = 0
    problems: list[str] = field(default_factory=list)


def check(argv: list[str]) -> int:
    """Check a data set; return the exit status, which is 1 if something is wrong."""
    parser = Arguments(
        prog="lsseg data check",
        description="Read every file of every split; show what the splits contain, and all problems of the files.",
    )
    parser.add_argument(
        "config", type=Path, help="a configuration with the key `data`, or a folder that `lsseg init` accepts"
    )
    parser.add_argument("--root", help="the data set's folder, instead of the configuration's data.root")
    parser.add_argument("--data.KEY", metavar="VALUE", help="any other key of the data, such as --data.masks_folder")
    options, keys = parser.parse_known_args(argv)
    data, place = _data(options.config, [*([f"--data.root={options.root}"] if options.root else []), *keys])
    console = Console(markup=False)
    found = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        for split in SPLITS[: 2 if data.test_split == "val" else 3]:  # there may be no test images then
            found[split] = _look(data, split, place)
        said = list(dict.fromkeys(str(warning.message) for warning in caught))
    _show(console, data, found)
    for text in said:
        console.print(f"note: {text}", highlight=False, soft_wrap=True)
    problems = list(dict.fromkeys(problem for one in found.values() for problem in one.problems))
    for text in problems[:SHOWN]:
        console.print(f"wrong: {text}", highlight=False, soft_wrap=True, style="red")
    if len(problems) > SHOWN:
        console.print(f"… and {len(problems) - SHOWN} more", highlight=False)
    count = {0: "nothing is", 1: "one thing is"}.get(len(problems), f"{len(problems)} things are")
    console.print(f"{count} wrong", highlight=False)
    return 1 if problems else 0


def _data(config: Path, keys: list[str]) -> tuple[DataModule[Any], Place]:
    """Make the data set of a configuration or a folder with the given keys; return it and its keys' ``Place``."""
    if config.is_dir():
        kind = "CocoFolder" if (config / "train" / FILE).is_file() else "FolderSegmentation"
        wanted: Any = {"class_path": kind, "init_args": {"root": str(config)}}
    else:
        content = read_yaml(config)
        if not isinstance(content, dict) or "data" not in content:
            raise InputError(
                f"{config} has no `data`: use a configuration with this key, or a folder with classes.yaml"
            )
        wanted = content["data"] if isinstance(content["data"], dict) else {"class_path": content["data"]}
    parser = Parser()
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    parsed = parser.parse_args([f"--data={json.dumps(wanted)}", *keys])
    place = Place(config=parsed.as_dict())
    with own_errors(place.config):
        made: DataModule[Any] = parser.instantiate_classes(parsed).data
    return made, place


def _look(data: DataModule[Any], split: Split, place: Place) -> Found:
    """Read every file of a split; the problems that ``data.check`` finds come first."""
    found = Found()
    try:
        source = data.source(split)
        data.check(split)
    except InputError as error:
        found.problems += _lines(located(error, place) if isinstance(error, ArgumentError) else error)
        try:
            source = data.source(split)
        except InputError:
            return found
    for index in track(range(len(source)), f"{split}", console=Console(stderr=True, markup=False), transient=True):
        try:
            image, truth = source.read(index)
            if not isinstance(truth, Instances):
                check_pair(source.name(index), image, truth, data.num_classes)
        except InputError as error:
            found.problems += _lines(error)
            continue
        _add(found, image.shape[:2], truth)
    return found


def _lines(error: InputError) -> list[str]:
    first, *more = str(error).splitlines()
    return [line.strip() for line in more] or [first]


def _add(found: Found, size: Any, truth: Any) -> None:
    found.images += 1
    found.sizes[size] += 1
    if isinstance(truth, Instances):
        labels, counts = np.unique(truth.labels[~truth.crowd], return_counts=True)
        found.crowds += int(truth.crowd.sum())
    else:
        labels, counts = np.unique(truth, return_counts=True)
    own = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    found.counts.update(own)
    found.with_class.update(own.keys())
    found.bare += not (own.keys() - {IGNORE_INDEX})


def _show(console: Console, data: DataModule[Any], found: dict[Split, Found]) -> None:
    table = Table(title=type(data).__name__)
    for column in ("", *found):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("images", *(str(one.images) for one in found.values()))
    table.add_row("sizes", *(_sizes(one.sizes) for one in found.values()))
    if data.kind == "instances":
        table.add_row("objects", *(str(sum(one.counts.values())) for one in found.values()))
        table.add_row("crowds", *(str(one.crowds) for one in found.values()))
        table.add_row("images without an object", *(str(one.bare) for one in found.values()))
    else:
        table.add_row("images without a label", *(str(one.bare) for one in found.values()))
    table.add_section()
    rows = [*enumerate(data.class_names), *([(IGNORE_INDEX, "void")] if data.kind == "semantic" else [])]
    for label, name in rows:
        table.add_row(name, *(_share(one, label, data.kind) for one in found.values()))
    console.print(table)
    what = "number of objects" if data.kind == "instances" else "share of the pixels"
    console.print(f"Rows of classes: {what}, and in parentheses the number of images with the class.", highlight=False)


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if len(sizes) <= 1:
        return "".join(f"{height}×{width}" for height, width in sizes)
    heights, widths = zip(*sizes, strict=True)
    return f"{min(heights)}–{max(heights)}×{min(widths)}–{max(widths)}"


def _share(found: Found, label: int, kind: str) -> str:
    count, total = found.counts[label], sum(found.counts.values())
    if not count:
        return "–"
    amount = f"{count}" if kind == "instances" else f"{100 * count / total:.2f} %"
    return f"{amount} ({found.with_class[label]})"
