"""How often the classes occur in a split, and the class weights that follow (Zhang 2019, eq. 12)."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from lsseg.data.loading import check_labels
from lsseg.data.source import IGNORE_INDEX, FilePairs, Source
from lsseg.files import write_json

VERSION = 1  # of how it is counted


def class_frequencies(source: Source, num_classes: int, progress: bool = False) -> npt.NDArray[np.float64]:
    """f_c: pixels of class c ÷ valid pixels of the images in which c occurs; 0 for a class that never occurs.

    Args:
        source: A split; all of it is read once, and only its masks where they are files of their own.
        num_classes: C.
        progress: Show a bar.

    Returns:
        C frequencies.

    Raises:
        InputError: If a mask cannot be used; names it.
    """

    def count(index: int) -> npt.NDArray[np.int64]:
        mask = source.read_mask(index) if isinstance(source, FilePairs) else source.read(index)[1]
        check_labels(source.name(index), mask, num_classes)
        return np.bincount(mask[mask != IGNORE_INDEX].astype(np.int64).ravel(), minlength=num_classes)

    own, where = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    with ThreadPoolExecutor(4) as pool:  # decoding releases the interpreter
        counts = pool.map(count, range(len(source)))
        for pixels in track(counts, "class frequencies", len(source), transient=True, disable=not progress):
            own += pixels
            where += pixels.sum() * (pixels > 0)
    return own / np.maximum(where, 1)


def remembered_frequencies(source: Source, num_classes: int) -> npt.NDArray[np.float64]:
    """:func:`class_frequencies` with a bar, counted once for the same files and classes on this machine.

    (Not of a user's own reader, which may read the same files in other ways.) Counts of large splits take minutes, and
    every run of a suite needs them: they are kept in ``$XDG_CACHE_HOME/lsseg``, or ``~/.cache/lsseg``, under a name
    made of the masks' paths, sizes and times of change.
    """
    if not isinstance(source, FilePairs) or not type(source).__module__.startswith("lsseg."):
        return class_frequencies(source, num_classes, progress=True)
    name = f"frequencies-{_fingerprint(source, num_classes)}.json"
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsseg" / name
    except RuntimeError:  # no home
        return class_frequencies(source, num_classes, progress=True)
    try:
        known = np.array(json.loads(path.read_text()), np.float64)
        if known.shape == (num_classes,):
            return known
    except (OSError, ValueError):  # not there, or not to be read: it is counted again
        pass
    found = class_frequencies(source, num_classes, progress=True)
    with suppress(OSError):  # a home that cannot be written to
        write_json(path, found.tolist())
    return found


def _fingerprint(source: FilePairs, num_classes: int) -> str:
    digest = hashlib.sha256(repr((VERSION, type(source).__qualname__, source.labels, num_classes)).encode())
    for _, mask in source.pairs:
        status = mask.stat()
        digest.update(f"{mask.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def median_frequency_weights(frequencies: npt.NDArray[np.float64]) -> list[float]:
    """w_c = median(f) / f_c over the classes that occur, 0 for the others (Zhang 2019, eq. 12; Eigen and Fergus 2015).

    >>> median_frequency_weights(np.array([0.5, 0.25, 0.125, 0.0]))
    [0.5, 1.0, 2.0, 0.0]
    """
    occurring = frequencies > 0
    median = np.median(frequencies[occurring]) if occurring.any() else 0.0
    weights = np.divide(median, frequencies, out=np.zeros_like(frequencies), where=occurring)
    return [float(weight) for weight in weights]
