"""Where data sets lie on this disk."""

import os
from pathlib import Path

from lsseg.errors import InputError


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
        where = f"data.root {path} is not a folder" if root else f"no folder {path} (set data.root or LSSEG_DATA)"
        raise InputError(f"{where}; {hint}")
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
            "get all of it, or set data.partial true"
        )
