"""Writes files whole, so that a reader never sees half of one, and reads those that people write."""

import json
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from lsseg.errors import InputError


def write_whole(write: Callable[[Path], Any], path: Path) -> None:
    """Write a temporary file and rename it, so that a reader never sees an incomplete file.

    Args:
        write: Function that writes a file of the given path, which has the suffix of ``path``.
        path: The file. Its folder is made if it is missing.
    """
    # The name is random, because processes of several computers may write the same file.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:  # the error of a full disk does not name the file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text so that a reader never sees an incomplete file."""
    write_whole(lambda temporary: temporary.write_text(text, encoding="utf-8"), path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader never sees an incomplete file."""
    write_text(path, json.dumps(content, indent=1) + "\n")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, because YAML's own loader would drop the first value in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known = set[tuple[str, str]]()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in known and key.value != "<<":
                raise InputError(f"line {key.start_mark.line + 1}: the key {key.value} is given twice")
            known.add((key.tag, str(key.value)))
        return node


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; a byte order mark in it does no harm.

    Raises:
        InputError: If there is no such file, it is not YAML, or it gives a key twice; names the file.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except InputError as error:
        raise InputError(f"{path}, {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder: give a file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an append-only log, sorted by step; a missing file has none.

    Of several rows with the same step and keys only the last one is returned. Lines that are not rows are skipped.
    """
    rows: dict[Any, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows[int(row["step"]), tuple(sorted(row))] = row
        except (ValueError, LookupError, TypeError):
            continue
    return sorted(rows.values(), key=lambda row: row["step"])
