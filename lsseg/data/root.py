"""Where data sets lie on this disk, and how an archive is fetched and unpacked, whole or not at all."""

import http.client
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

from lsseg.errors import ArgumentError, InputError

TIMEOUT = 10.0  # seconds without a byte


class Archive(NamedTuple):
    """A zip file somewhere, and what of it is wanted.

    Attributes:
        url: Address of the file.
        members: Pattern of the wanted members; its first group is the path below the data set's folder. It must not
            match anything that leads out of that folder.
    """

    url: str
    members: str


class Origin(NamedTuple):
    """Where a data set comes from, and what a complete copy of it holds.

    Attributes:
        name: What ``lsseg data`` calls it.
        folder: Name of the folder below ``$LSSEG_DATA`` (or ``data``).
        counts: Files that a complete copy has, by pattern.
        terms: Under which conditions, as its authors state them.
        archive: Addresses from which it can be fetched; None where its files must be put in place by hand.
        source: Where to find it in that case.
        layout: Files by pattern of another layout that is read, too.
        extra: Files by pattern that some settings need, and not all.
        unpacked: Folders below its own in which it may lie as well, as its archive unpacks.
    """

    name: str
    folder: str
    counts: dict[str, int]
    terms: str
    archive: Archive | None = None
    source: str = ""
    layout: dict[str, int] = {}
    extra: dict[str, int] = {}
    unpacked: tuple[str, ...] = ()


def fetch(archive: Archive, root: Path, problem: Callable[[Path], str | None], console: Console) -> None:
    """Fetch, unpack and verify; ``root`` appears complete or not at all.

    Args:
        archive: What to fetch.
        root: The folder to be made.
        problem: Says what is wrong with an unpacked copy, or None.
        console: The console that shows progress.

    Raises:
        InputError: If there is no network, the file is no zip, or the copy is not complete.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        zipped, unpacked = Path(temporary) / "archive.zip", Path(temporary) / root.name
        _download(archive.url, zipped, console)
        unpacked.mkdir()
        _unpack(zipped, archive, unpacked)
        wrong = problem(unpacked)
        if wrong:
            raise InputError(f"{archive.url} is not the expected data set: {wrong}")
        unpacked.rename(root)


def _download(url: str, target: Path, console: Console) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, target.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task(f"fetching {url}", total=size or None)
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"cannot fetch {url}: {reason}; fetch it elsewhere and pass its file:// address as --url"
        ) from error


def _unpack(zipped: Path, archive: Archive, target: Path) -> None:
    try:
        with zipfile.ZipFile(zipped) as file:
            for member in file.infolist():
                wanted = re.fullmatch(archive.members, member.filename)
                if wanted is None or member.is_dir():
                    continue
                path = target / wanted[1]
                if not path.resolve().is_relative_to(target.resolve()):
                    raise InputError(f"{archive.url} holds {member.filename}, which leads out of the folder")
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive.url} is no zip file: {error}") from error


def data_root(folder: str) -> Path:
    """Where a data set is looked for when no root is given: ``$LSSEG_DATA/folder``, else ``data/folder``."""
    return Path(os.environ.get("LSSEG_DATA", "data")) / folder


def existing_root(root: str | None, folder: str, hint: str) -> Path:
    """The data set's folder.

    Args:
        root: The user's ``data.root``, or None to look in the usual place.
        folder: Name of the data set's folder in the usual place.
        hint: How to get the data set, for the error message.

    Raises:
        InputError: If it does not exist; says where it was looked for and how to get it.
    """
    path = Path(root) if root else data_root(folder)
    if not path.is_dir():
        if root:
            raise ArgumentError(f"root {path} is not a folder; {hint}")
        raise ArgumentError(f"root: there is no folder {path} (set it, or LSSEG_DATA); {hint}")
    return path


def check_count(place: Path, split: str, found: int, official: int, partial: bool) -> None:
    """Refuse a split that is not the official one, since its scores cannot be compared with published ones.

    Args:
        place: The data set's folder.
        split: What it calls the split.
        found: Number of images that are there.
        official: Number of images that there should be.
        partial: The user's word that another number is meant.

    Raises:
        InputError: If they differ.
    """
    if found != official and not partial:
        raise InputError(
            f"the {split} split in {place} has {found} images, the official one {official}: "
            "get all of it, or set partial true"
        )
