"""What is wrong with the files of a user's own data, all of it, before anything is spent on training."""

import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lsseg.data.classes import Classes
from lsseg.data.pixels import image_size, read_mask
from lsseg.data.source import IGNORE_INDEX, FilePairs, other_size
from lsseg.errors import InputError

THREADS = 8  # decoding releases Python's lock


def look_at_pairs(source: FilePairs) -> tuple[Counter[int], list[str]]:
    """Compare every mask with its image's size and with the classes.

    Args:
        source: The pairs.

    Returns:
        How often each label occurs, and 255 as a mask's own value as -1; and what is wrong.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda index: _look(source, index), range(len(source))))
    found: Counter[int] = Counter()
    for result in results:
        if not isinstance(result, str):
            found.update(result)
    return found, [result for result in results if isinstance(result, str)]


def _look(source: FilePairs, index: int) -> Counter[int] | str:
    """What a mask holds, or what is wrong with the pair."""
    image, path = source.pairs[index]
    try:
        mask = source.read_mask(index)
        size = image_size(image)
        if size != mask.shape:
            return other_size(image, size, path, mask.shape)
        labels, counts = np.unique(mask, return_counts=True)
        found = Counter(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
        if source.colors is None and IGNORE_INDEX in found:
            found[-1] = int((read_mask(path) == IGNORE_INDEX).sum())
        return found
    except InputError as error:
        return str(error)


def compare_classes(found: Counter[int], classes: Classes, said_in: Path) -> None:
    """Compare the labels of the training split with the classes that are declared.

    Args:
        found: By :func:`look_at_pairs`.
        classes: What is declared.
        said_in: The file that declares it.

    Raises:
        InputError: Where a class without a pixel stands beside values of 255 that nobody has declared void.
    """
    absent = [name for label, name in enumerate(classes.names) if not found[label]]
    if len(absent) == len(classes.names):
        raise InputError(f"the training split cannot be learnt from: every pixel of its masks is void ({said_in})")
    undeclared = found[-1] and IGNORE_INDEX not in classes.void and classes.labels.get(IGNORE_INDEX) == IGNORE_INDEX
    if absent and undeclared:
        raise InputError(
            f"{said_in}: no training mask has a pixel of {_some(absent)}, but {found[-1]} pixels have the value 255, "
            f"which counts for nothing: say `{absent[0]}: 255` (classes: {{NAME: VALUE, …}}) if it is that class, or "
            "`void: [255]` if it is not"
        )
    if absent:
        warnings.warn(f"no training mask has a pixel of {_some(absent)} ({said_in})", stacklevel=2)
    elif undeclared:
        warnings.warn(
            f"{found[-1]} pixels of the training masks have the value 255 and count for nothing; `void: [255]` in "
            f"{said_in} says so",
            stacklevel=2,
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
