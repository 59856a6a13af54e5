"""``lsseg data``: which data sets are there, how to get those that are not, and fetching one."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import lsseg.data
from lsseg.arguments import Arguments
from lsseg.cli import check
from lsseg.data import DataModule
from lsseg.data.root import Origin, data_root, fetch
from lsseg.errors import InputError

FILES = (".png", ".jpg", ".json", ".mat")


def data_sets() -> dict[str, type[DataModule[Any]]]:
    """The data sets that say where they come from, by the names that this command has for them."""
    exported = (getattr(lsseg.data, name) for name in lsseg.data.__all__)
    known = [one for one in exported if isinstance(one, type) and vars(one).get("origin")]
    return {vars(one)["origin"].name: one for one in known}


def origin_of(data: type[DataModule[Any]]) -> Origin:
    """What a data set says of itself."""
    assert data.origin is not None
    return data.origin


def main(argv: list[str]) -> int:
    """List the data sets, fetch one, or check one; returns the exit status."""
    if argv[1:2] == ["check"]:
        return check.main(argv[2:])
    parser = Arguments(
        prog="lsseg data",
        description="Show which data sets are where; with a name, fetch one that is missing. `lsseg data check CONFIG` "
        "reads every file of a data set.",
    )
    parser.add_argument("name", nargs="?", choices=[*sorted(data_sets()), "check"], help="the data set to fetch")
    parser.add_argument("--root", type=Path, help="where to put it (default: $LSSEG_DATA/NAME, or data/NAME)")
    parser.add_argument("--url", help="another address of the same archive")
    options = parser.parse_args(argv[1:])
    console = Console()
    if options.name is None:
        console.print(_overview())
        console.print(
            "Data sets are looked for in the folder that LSSEG_DATA names, else in ./data; data.root points elsewhere.",
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
        console.print(f"{shown} is already in {root}, complete")
        return 0
    if known.archive is None:
        raise InputError(f"{shown} must be put into {root} by hand, from {known.source} ({known.terms})")
    archive = known.archive._replace(url=options.url) if options.url else known.archive
    fetch(archive, root, lambda folder: _incomplete(known, folder), console)
    console.print(f"{shown} is in {root}, complete. Terms: {known.terms}")
    return 0


def _overview() -> Table:
    table = Table()
    for column in ("data set", "where", "state", "how to get it"):
        table.add_column(column, overflow="fold")
    for name in ("SyntheticShapes", "SyntheticInstances"):
        table.add_row(name, "generated", "[green]always there", "–")
    for name, data in data_sets().items():
        known = origin_of(data)
        root = data_root(known.folder)
        problem = _incomplete(known, root) if root.is_dir() else "missing"
        state = f"[yellow]{problem}" if problem else "[green]complete"
        if not problem and (lacking := _lacking(known.extra, root)):
            state += f"[/]; for some settings, {lacking}"
        verb = "fetches it" if known.archive else "says how"
        table.add_row(data.__name__, str(root), state, f"`lsseg data {name}` {verb} ({known.terms})")
    folder = "a folder of yours: images/, masks/, classes.yaml"
    table.add_row("FolderSegmentation", "data.root", "yours", folder)
    return table


def _incomplete(known: Origin, root: Path) -> str | None:
    """What is wrong with a copy, or None; of two layouts, the first one's."""
    root = next((root / inner for inner in known.unpacked if (root / inner).is_dir()), root)
    problem = _lacking(known.counts, root)
    return None if problem and known.layout and not _lacking(known.layout, root) else problem


def _lacking(counts: dict[str, int], root: Path) -> str | None:
    for part, expected in counts.items():
        # A file, files of a pattern (beside this folder, too), or what a folder holds.
        place, name = (root.parent, part[3:]) if part.startswith("../") else (root, part)
        files = (
            place.glob(name) if "*" in name else [place / name] if name.endswith(FILES) else (place / name).glob("*")
        )
        found = sum(1 for path in files if path.is_dir() or (path.suffix.lower() in FILES and path.is_file()))
        if found != expected:
            return f"{part} has {found} files of {expected}" if expected > 1 else f"{part} is missing"
    return None
