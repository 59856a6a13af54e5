"""What the runs of a suite left on disk, as tables."""

import fnmatch
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from lsseg.ablation.statistics import Difference, paired_difference
from lsseg.errors import InputError
from lsseg.functional import boundary_f1, class_iou, pixel_accuracy

# Score → its place in the per-image boundary counts (the radii, in order); mIoU has counts of its own.
BOUNDARY_SCORES = ("boundary_f1_1px", "boundary_f1_2px", "boundary_f1_3px")

SUMMARY_KEYS = {
    "scores", "train_seconds_per_image", "test_seconds_per_image", "parameters", "step", "classes", "device",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A finished run."""

    variant: str
    seed: int
    folder: Path
    summary: dict[str, Any]
    names: npt.NDArray[np.str_]
    overlap: npt.NDArray[np.int64]
    boundary: npt.NDArray[np.int64]

    def counts(self, score: str) -> npt.NDArray[np.int64]:
        """N×C×K counts that the score is made of."""
        return self.overlap if score == "miou" else self.boundary[:, BOUNDARY_SCORES.index(score)]

    def subset(self, pattern: str) -> "Result":
        """The same run on the test images of matching names."""
        keep = np.array([fnmatch.fnmatch(str(name), pattern) for name in self.names], dtype=bool)
        parts = (self.names[keep], self.overlap[keep], self.boundary[keep])
        return Result(self.variant, self.seed, self.folder, self.summary, *parts)

    def scores(self) -> dict[str, float]:
        """Percentages over its test images."""
        total = torch.from_numpy(self.overlap.sum(0))
        scores = {"miou": float(class_iou(total).nanmean()), "accuracy": float(pixel_accuracy(total))}
        for score in BOUNDARY_SCORES:
            scores[score] = float(boundary_f1(torch.from_numpy(self.counts(score).sum(0))).nanmean())
        return {name: 100 * value for name, value in scores.items()}


def class_score(score: str) -> Callable[[Tensor], Tensor]:
    """The function from …×C×K counts to …×C scores."""
    return class_iou if score == "miou" else boundary_f1


def load_description(folder: Path) -> dict[str, Any]:
    """What the suite is, as the runner noted it.

    Raises:
        InputError: If the folder holds no suite.
    """
    path = folder / "suite.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no suite: {path.name}, which `lsseg ablate` writes, is missing")
    description: dict[str, Any] = _read(path, lambda: json.loads(path.read_text()), "start `lsseg ablate` again")
    return description


def load_results(folder: Path, description: dict[str, Any]) -> list[Result]:
    """The finished runs of a suite, in its order.

    Raises:
        InputError: If a run's files are damaged; names the file.
    """
    results = []
    for variant, runs in description["runs"].items():
        for seed, name in runs.items():
            run = folder / name
            if (run / "test.json").is_file():
                results.append(_load_result(run, variant, int(seed)))
    return results


def _load_result(run: Path, variant: str, seed: int) -> Result:
    def counts() -> tuple[npt.NDArray[Any], ...]:
        with np.load(run / "test_images.npz") as file:
            return file["names"], file["overlap"], file["boundary"]

    advice = f"delete {run} and start `lsseg ablate` again"
    summary = _read(run / "test.json", lambda: json.loads((run / "test.json").read_text()), advice)
    if not isinstance(summary, dict) or not summary.keys() >= SUMMARY_KEYS:
        raise InputError(f"{run / 'test.json'} lacks results; {advice}")
    return Result(variant, seed, run, summary, *_read(run / "test_images.npz", counts, advice))


def _read(path: Path, load: Callable[[], Any], advice: str) -> Any:
    try:
        return load()
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or missing; {advice}") from error


def difference(results: list[Result], variant: str, baseline: str, score: str) -> Difference | None:
    """Paired difference of a variant to the baseline over their common seeds, in percentage points."""
    ours = {result.seed: result for result in results if result.variant == variant}
    theirs = {result.seed: result for result in results if result.variant == baseline}
    seeds = sorted(ours.keys() & theirs.keys())
    if variant == baseline or not seeds:
        return None
    for seed in seeds:
        if list(ours[seed].names) != list(theirs[seed].names):
            raise InputError(f"{ours[seed].folder} and {theirs[seed].folder} were tested on different images")
    counts = [[side[seed].counts(score) for seed in seeds] for side in (ours, theirs)]
    found = paired_difference(counts[0], counts[1], class_score(score))
    return found.times(100)


def run_table(results: list[Result]) -> pd.DataFrame:
    """One row for each run: scores in percent, those of every class among them, and costs."""
    rows = []
    for result in results:
        per_class = {k: 100 * v for k, v in result.summary["scores"].items() if "/" in k}
        costs = {
            key: result.summary[key] for key in ("train_seconds_per_image", "test_seconds_per_image", "parameters")
        }
        rows.append({"variant": result.variant, "seed": result.seed, **result.scores(), **costs, **per_class})
    return pd.DataFrame(rows)


def variant_table(results: list[Result], description: dict[str, Any]) -> pd.DataFrame:
    """One row for each variant: mean and spread over seeds, difference to the baseline, costs, the paper's number."""
    baseline = description["baseline"]
    rows = []
    for variant in description["variants"]:
        own = [result for result in results if result.variant == variant["name"]]
        row: dict[str, Any] = {"variant": variant["name"], "label": variant["label"], "seeds": len(own)}
        if own:
            row |= _means(own, "")
            for score in ("miou", *BOUNDARY_SCORES):
                row |= _columns(difference(results, variant["name"], baseline, score), f"{score}_difference")
            for name, pattern in description["subsets"].items():
                part = [result.subset(pattern) for result in results]
                if not all(len(result.names) for result in part):
                    continue
                row |= _means([result for result in part if result.variant == variant["name"]], f"{name}_")
                row |= _columns(difference(part, variant["name"], baseline, "miou"), f"{name}_miou_difference")
            for cost in ("train_seconds_per_image", "test_seconds_per_image"):
                values = [result.summary[cost] for result in own if result.summary[cost] is not None]
                row[cost] = float(np.mean(values)) if values else None
            row["parameters"] = own[0].summary["parameters"]
        rows.append(row | {f"paper_{score}": value for score, value in variant["paper"].items()})
    return pd.DataFrame(rows)


def _means(results: list[Result], prefix: str) -> dict[str, float]:
    scores = pd.DataFrame([result.scores() for result in results])
    spread = scores.std(ddof=1) if len(scores) > 1 else scores.mean() * np.nan
    columns = {f"{prefix}{name}": float(value) for name, value in scores.mean().items()}
    return columns | {f"{prefix}{name}_std": float(value) for name, value in spread.items()}


def _columns(found: Difference | None, name: str) -> dict[str, float | str]:
    if found is None:
        return {}
    by_seed = " ".join(f"{value:+.2f}" for value in found.by_seed)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_by_seed": by_seed}
