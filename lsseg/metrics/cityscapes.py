"""Runs Cityscapes' official scripts (Cordts 2016) for IoU and iIoU of classes and categories, and for AP of objects.

The scripts read files: the predictions in the format of the server, and the official annotations.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import copy
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lsseg.errors import InputError

Pairs = Sequence[tuple[Path, Path]]


def cityscapes_pixel_scores(pairs: Pairs) -> dict[str, float]:
    """Return the scores of label maps over a data set, in [0, 1]; NaN where there is nothing to find.

    Args:
        pairs: Pairs of a prediction (8-bit PNG of official numbers) and ``*_gtFine_labelIds.png``, in whose folder
            there must also be ``*_gtFine_instanceIds.png``.

    Returns:
        ``miou``, ``category_miou``, ``iiou``, ``category_iiou``.

    Raises:
        InputError: If cityscapesScripts is not installed, or it refuses a file.
    """
    with _scripts("evalPixelLevelSemanticLabeling") as scripts:
        options = copy(scripts.args)
        options.quiet, options.JSONOutput = True, False
        matrix = scripts.generateMatrix(options)
        instances = scripts.generateInstanceStats(options)
        for prediction, truth in pairs:
            scripts.evaluatePair(str(prediction), str(truth), matrix, instances, {}, options)
        names = {scripts.id2label[label].name: label for label in options.evalLabels}
        tables = {
            "miou": {n: scripts.getIouScoreForLabel(i, matrix, options) for n, i in names.items()},
            "iiou": {n: scripts.getInstanceIouScoreForLabel(i, matrix, instances, options) for n, i in names.items()},
            "category_miou": {c: scripts.getIouScoreForCategory(c, matrix, options) for c in scripts.category2labels},
            "category_iiou": {
                c: scripts.getInstanceIouScoreForCategory(c, matrix, instances, options)
                for c in scripts.category2labels
            },
        }
        return {name: float(scripts.getScoreAverage(table, options)) for name, table in tables.items()}


def cityscapes_object_scores(pairs: Pairs, root: Path) -> dict[str, float]:
    """Return the average precision of objects over a data set, in [0, 1]; NaN where there is nothing to find.

    Args:
        pairs: Pairs of a prediction (text file of masks, classes and confidences) and ``*_gtFine_instanceIds.png``.
        root: The folder that holds all predictions.

    Returns:
        ``ap`` (overlaps .50:.05:.95), ``ap50``, and ``ap/CLASS``.

    Raises:
        InputError: If cityscapesScripts is not installed, or it refuses a file.
    """
    with _scripts("evalInstanceLevelSemanticLabeling") as scripts:
        options = copy(scripts.args)
        options.quiet, options.JSONOutput, options.predictionPath = True, False, str(root.resolve())
        scripts.setInstanceLabels(options)
        predictions, truths = ([str(path.resolve()) for path in side] for side in zip(*pairs, strict=True))
        # The truth is read here, because the scripts would cache it in a file inside their own package.
        objects = scripts.instances2dict(truths, False)
        matches = scripts.matchGtWithPreds(predictions, truths, objects, options)
        averages = scripts.computeAverages(scripts.evaluateMatches(matches, options), options)
    by_class = {f"ap/{name}": float(value["ap"]) for name, value in averages["classes"].items()}
    return {"ap": float(averages["allAp"]), "ap50": float(averages["allAp50%"]), **by_class}


def require_scripts() -> None:
    """Raise ``InputError`` where the official scripts are not installed."""
    try:
        import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    except ImportError as error:
        raise InputError("Cityscapes' own scores need its scripts: pip install 'lsseg[cityscapes]'") from error


@contextmanager
def _scripts(name: str) -> Iterator[ModuleType | Any]:
    """Import a module of the official scripts, supply the function that NumPy 2.4 lacks, and turn exits into errors."""
    require_scripts()
    scripts = import_module(f"cityscapesscripts.evaluation.{name}")
    said = io.StringIO()
    lacking = not hasattr(np, "in1d")
    if lacking:
        np.in1d = np.isin  # type: ignore[attr-defined]  # noqa: NPY201
    try:
        with np.errstate(all="ignore"), redirect_stdout(said), redirect_stderr(said):  # hides warnings of empty means
            yield scripts
    except SystemExit as error:
        lines = said.getvalue().split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
        raise InputError(f"Cityscapes' scripts refuse a file: {reason.removeprefix('ERROR: ')}") from error
    finally:
        if lacking:
            del np.in1d  # type: ignore[attr-defined]  # noqa: NPY201


def known_only(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores that have a value.

    >>> known_only({"ap": 0.5, "ap50": float("nan")})
    {'ap': 0.5}
    """
    return {name: value for name, value in scores.items() if not math.isnan(value)}
