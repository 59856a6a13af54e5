"""Finds the folders of data sets, and fetches and unpacks an archive completely or not at all."""

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

TIMEOUT = 10.0  # seconds that a connection may send nothing


class Archive(NamedTuple):
    """Holds the address of a zip file and the pattern of the members to unpack.

    Attributes:
        url: Address of the file.
        members: Pattern of the members to unpack; its first group is the path below the data set's folder. It must
            not match a path outside that folder.
    """

    url: str
    members: str


class Origin(NamedTuple):
    """Describes where a data set comes from and which files a complete copy has.

    Attributes:
        name: Name of the data set for ``lsseg data``.
        folder: Name of the folder below ``$LSSEG_DATA`` (or ``data``).
        counts: Number of files of a complete copy, by pattern.
        terms: Terms of use, as the authors state them.
        archive: The archive to fetch; None if the user must put the files in place by hand.
        source: Where the user finds the files in that case.
        layout: Number of files, by pattern, of a second layout that can be read.
        extra: Number of files, by pattern, that only some settings need.
        unpacked: Subfolders that may hold the files instead, because the archive unpacks into them.
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
    """Fetch, unpack and verify an archive; ``root`` appears complete or not at all.

    Args:
        archive: What to fetch.
        root: The folder to make.
        problem: Returns what is wrong with an unpacked copy, or None.
        console: The console that shows progress.

    Raises:
        InputError: If the archive cannot be fetched or is no zip file, or the copy is incomplete or leaves the folder.
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
            f"cannot fetch {url}: {reason}; download it on another machine and pass the file's file:// address as --url"
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
                    raise InputError(
                        f"{archive.url} holds {member.filename}, which would be written outside of the folder"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive.url} is not a zip file: {error}") from error


def data_root(folder: str) -> Path:
    """Return the default folder of a data set: ``$LSSEG_DATA/folder``, or ``data/folder`` without that variable."""
    return Path(os.environ.get("LSSEG_DATA", "data")) / folder


def existing_root(root: str | None, folder: str, hint: str) -> Path:
    """Return the data set's folder.

    Args:
        root: The user's ``data.root``, or None to look in the usual place.
        folder: Name of the data set's folder in the usual place.
        hint: How to get the data set, for the error message.

    Raises:
        ArgumentError: If the folder does not exist; the message says which folder is missing and how to get it.
    """
    path = Path(root).expanduser() if root else data_root(folder)
    if not path.is_dir():
        if root:
            raise ArgumentError(f"root {path} is not a folder; {hint}")
        raise ArgumentError(f"root is not set, and {path} is not a folder (set root or LSSEG_DATA); {hint}")
    return path


def check_count(place: Path, split: str, found: int, official: int, partial: bool) -> None:
    """Refuse an incomplete or enlarged split, since its scores cannot be compared with published ones.

    Args:
        place: The data set's folder.
        split: Name of the split in the data set.
        found: Number of images in the split.
        official: Number of images in the official split.
        partial: Whether the user accepts another number of images.

    Raises:
        InputError: If the numbers differ and ``partial`` is false.
    """
    if found != official and not partial:
        raise InputError(
            f"the {split} split in {place} has {found} images, but the official one has {official}: "
            "get all of it, or set partial to true"
        )
