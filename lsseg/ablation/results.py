"""Reads the results of a suite's runs from disk and computes the rows of the suite's table."""

import fnmatch
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from lsseg.ablation.spec import Variant
from lsseg.errors import InputError
from lsseg.metrics.scores import COSTS, RESAMPLES, Difference, Score, Scored, Summed, of_kind, paired_difference

NEEDED = {"semantic": {"overlap", "boundary"}, "instances": {"detections", "objects", "index"}}
SUMMARY_KEYS: dict[str, Any] = {
    "scores": dict,
    "train_seconds_per_image": int | float | None,
    "test_seconds_per_image": int | float | None,
    "train_peak_bytes": int | None,
    "parameters": int,
    "step": int,
    "classes": list,
    "device": str,
}
# Scores of detections cannot be computed from weighted sums over images, so each resample takes longer.
FEW_RESAMPLES = 1_000


@dataclass(frozen=True)
class Result:
    """Holds the results of a finished run.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the run.
        folder: The run folder.
        summary: Content of ``test.json``.
        names: Names of the test images.
        counts: Counts of the test images, by the counts' names.
    """

    variant: str
    seed: int
    folder: Path
    summary: dict[str, Any]
    names: npt.NDArray[np.str_]
    counts: dict[str, npt.NDArray[Any]]

    @property
    def kind(self) -> str:
        """Return the kind of the run's task."""
        return kind_of_summary(self.summary)

    @property
    def version(self) -> str:
        """Return the commit that made the run, with ``+`` if files were changed; ``unknown`` outside a git checkout."""
        path = self.folder / "environment.json"
        noted = _read(path, lambda: json.loads(path.read_text()), "delete it") if path.is_file() else {}
        if not isinstance(noted, dict):
            raise InputError(f"{path} is damaged; delete it")
        commit = str(noted.get("git_commit") or "unknown")[:10]
        return commit + ("+" if noted.get("git_changed_files") else "")

    def subset(self, pattern: str) -> "Result":
        """Return the run on the test images with matching names, without scores that need more than counts."""
        keep = np.array([fnmatch.fnmatch(str(name), pattern) for name in self.names], dtype=bool)
        counts = {name: rows[keep] for name, rows in self.counts.items() if len(rows) == len(keep)}
        if "detections" in self.counts:  # an image can have several detections
            detections = self.counts["detections"]
            counts["detections"] = detections[np.isin(detections[:, 0], counts["index"])]
        return replace(self, names=self.names[keep], counts=counts, summary={**self.summary, "scores": {}})

    def scores(self) -> dict[str, float]:
        """Return scores by name, in the units of tables.

        Scores of label maps come from the counts. Other scores come from ``test.json`` or, if they are not in it, as in
        a subset, from the counts.
        """
        known, every = self.summary["scores"], np.ones((1, len(self.names)))
        found = {}
        for score in of_kind(self.kind):
            if score.of_images is not None and (isinstance(score.of_images, Summed) or score.name not in known):
                if self._can_be_weighted(score):
                    found[score.name] = score.shown(float(score.of_images(self.counts, every)[0]))
            elif score.name in known:
                found[score.name] = score.shown(known[score.name])
        return found

    def scored(self, score: Score) -> Scored | None:
        """Return a score as a function of how often each test image counts, or None if the run lacks the counts."""
        if score.of_images is None or not self._can_be_weighted(score):
            return None
        return partial(score.of_images, self.counts)

    def _can_be_weighted(self, score: Score) -> bool:
        return not isinstance(score.of_images, Summed) or score.of_images.counts in self.counts


def kind_of_summary(summary: dict[str, Any]) -> str:
    """Return the kind of a run's task, which is ``semantic`` if ``test.json`` does not name it."""
    kind: str = summary.get("kind", "semantic")
    return kind


@dataclass(frozen=True)
class Description:
    """Describes a suite, as ``lsseg ablate`` recorded it.

    Attributes:
        name: Name of the suite.
        variants: The variants, which are the rows of the table.
        runs: Names of the runs by variant and seed.
        baseline: Name of the variant with which the others are compared.
        subsets: Patterns of image names, by the subsets' names in tables; each subset has its own scores.
    """

    name: str
    variants: tuple[Variant, ...]
    runs: dict[str, dict[str, str]]
    baseline: str
    subsets: dict[str, str]

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of the variants in tables, by name."""
        return {variant.name: variant.label for variant in self.variants}


def load_description(folder: Path) -> Description:
    """Read the description of a suite.

    Raises:
        InputError: If the folder holds no suite, or the description is damaged.
    """
    path = folder / "suite.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no suite: {path.name}, which `lsseg ablate` writes, is missing")
    noted = _read(path, lambda: json.loads(path.read_text()), "start `lsseg ablate` again")
    try:
        return _described(noted)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not the description of a suite; start `lsseg ablate` again") from error


def _described(noted: Any) -> Description:
    """Return the description after checking the type of each part; a wrong part raises Python's own error."""

    def text(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value

    rows = []
    for row in noted["variants"]:
        paper = {text(name): float(number) for name, number in (row.get("paper") or {}).items()}
        compared = row.get("baseline")
        cite = bool(row.get("cite", False))
        rows.append(Variant(text(row["name"]), text(row["label"]), (), {}, paper, cite, compared and text(compared)))
    names = {row.name for row in rows}
    runs = {text(v): {str(int(s)): text(run) for s, run in own.items()} for v, own in noted["runs"].items()}
    subsets = {text(name): text(pattern) for name, pattern in (noted.get("subsets") or {}).items()}
    baseline = text(noted["baseline"])
    if not names >= {*runs, baseline, *(row.baseline for row in rows if row.baseline)}:
        raise LookupError("a variant that is none of the suite's")
    return Description(text(noted["name"]), tuple(rows), runs, baseline, subsets)


def load_results(folder: Path, description: Description) -> list[Result]:
    """Read the finished runs of a suite, in the suite's order.

    Raises:
        InputError: If a run's files are damaged; the message names the file.
    """
    results = []
    for variant, runs in description.runs.items():
        for seed, name in runs.items():
            run = folder / name
            if (run / "test.json").is_file():
                results.append(_load_result(run, variant, int(seed)))
    return results


def _load_result(run: Path, variant: str, seed: int) -> Result:
    def counts() -> tuple[npt.NDArray[np.str_], dict[str, npt.NDArray[Any]]]:
        with (run / "test_images.npz").open("rb") as raw, np.load(raw) as file:
            kept = {name: file[name] for name in file.files if name not in ("names", "classes")}
            missing = NEEDED[kind_of_summary(summary)] - kept.keys()
            if missing:
                raise KeyError(*missing)
            return file["names"], kept

    advice = f"delete {run} and start `lsseg ablate` again"
    summary = _read(run / "test.json", lambda: json.loads((run / "test.json").read_text()), advice)
    if not isinstance(summary, dict) or not all(isinstance(summary.get(k), kind) for k, kind in SUMMARY_KEYS.items()):
        raise InputError(f"{run / 'test.json'} lacks results; {advice}")
    numbers = [*summary["scores"].values()]
    if not all(isinstance(number, int | float) for number in numbers):
        raise InputError(f"{run / 'test.json'} has a score that is no number; {advice}")
    return Result(variant, seed, run, summary, *_read(run / "test_images.npz", counts, advice))


def with_classes(results: list[Result]) -> list[Score]:
    """Return the scores that have a table by class and that at least one run has for its classes."""
    known = {key.partition("/")[0] for result in results for key in result.summary["scores"] if "/" in key}
    return [score for score in scores_of(results) if score.class_label and score.classes in known]


def scores_of(results: list[Result]) -> list[Score]:
    """Return the scores of the kind that all runs have, in the order of tables.

    Raises:
        InputError: If the runs do not have exactly one kind.
    """
    kinds = {result.kind for result in results}
    if len(kinds) != 1:
        raise InputError(
            f"all runs of a suite must have the same kind of scores, but these have {' and '.join(sorted(kinds))}"
        )
    return [score for score in of_kind(kinds.pop()) if score.in_suites]


def _read(path: Path, load: Callable[[], Any], advice: str) -> Any:
    try:
        return load()
    except (ValueError, KeyError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or missing; {advice}") from error


def difference(results: list[Result], variant: str, baseline: str, score: Score) -> Difference | None:
    """Return the paired difference of a variant to the baseline over their common seeds, in percentage points.

    It is None for the baseline itself, without common seeds, or if a run lacks the counts of the score.
    """
    ours = {result.seed: result for result in results if result.variant == variant}
    theirs = {result.seed: result for result in results if result.variant == baseline}
    seeds = sorted(ours.keys() & theirs.keys())
    if variant == baseline or not seeds:
        return None
    for seed in seeds:
        if list(ours[seed].names) != list(theirs[seed].names):
            raise InputError(f"{ours[seed].folder} and {theirs[seed].folder} were tested on different images")
        if ours[seed].summary.get("classes") != theirs[seed].summary.get("classes"):
            raise InputError(f"{ours[seed].folder} and {theirs[seed].folder} were tested on different classes")
    first, second = ([one for seed in seeds if (one := side[seed].scored(score))] for side in (ours, theirs))
    if len(first) + len(second) < 2 * len(seeds):
        return None
    images = len(ours[seeds[0]].names)
    resamples = RESAMPLES if isinstance(score.of_images, Summed) else FEW_RESAMPLES
    return paired_difference(first, second, images, resamples).times(score.shown(1))


def run_table(results: list[Result]) -> pd.DataFrame:
    """Return a table with one row for each run: scores and scores of classes in percent, costs in seconds or bytes."""
    rows = []
    for result in results:
        per_class = {k: 100 * v for k, v in result.summary["scores"].items() if "/" in k}
        costs = {key: result.summary.get(key) for key in (*(cost.name for cost in COSTS), "parameters")}
        made = {"variant": result.variant, "seed": result.seed, "commit": result.version}
        rows.append({**made, **result.scores(), **costs, **per_class})
    return pd.DataFrame(rows)


class Spread(NamedTuple):
    """Summarizes a score of a variant's runs, in the unit of tables.

    Attributes:
        mean: Mean over seeds.
        deviation: Standard deviation over seeds; NaN for a single seed.
        seeds: Number of seeds that have the score; a run that found nothing has no boundary score.
    """

    mean: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class Measured:
    """Holds the scores of a variant's runs on the test images, or on a subset of them.

    Attributes:
        scores: Scores by name.
        differences: Differences to the variant's baseline, by the names of the scores.
    """

    scores: dict[str, Spread]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Row:
    """Holds a row of a suite's table.

    Attributes:
        variant: The variant, which also holds the paper's numbers.
        seeds: Number of finished runs.
        all: Scores on all test images.
        subsets: Scores on the subsets that have images, by the subsets' names.
        costs: Mean of each cost that was measured, by name.
        parameters: Number of the network's parameters; None if no run is finished.
        commits: Commits that made the runs.
    """

    variant: Variant
    seeds: int
    all: Measured
    subsets: dict[str, Measured]
    costs: dict[str, float]
    parameters: int | None
    commits: tuple[str, ...]


def rows_of(results: list[Result], description: Description) -> list[Row]:
    """Return one row for each variant, with means and spreads over seeds, differences to the baseline, and costs."""
    compared = [score for score in scores_of(results) if score.compared]
    parts = {name: [result.subset(pattern) for result in results] for name, pattern in description.subsets.items()}
    rows = []
    for variant in description.variants:
        baseline = variant.baseline or description.baseline
        own = [result for result in results if result.variant == variant.name]
        subsets = {
            name: measured(part, variant.name, baseline, compared[:1])
            for name, part in parts.items()
            if own and all(len(result.names) for result in part)
        }
        known = {c.name: [x for result in own if (x := result.summary.get(c.name)) is not None] for c in COSTS}
        costs = {name: float(np.mean(values)) for name, values in known.items() if values}
        commits = tuple(sorted({result.version for result in own}))
        whole = measured(results, variant.name, baseline, compared)
        parameters = own[0].summary["parameters"] if own else None
        rows.append(Row(variant, len(own), whole, subsets, costs, parameters, commits))
    return rows


def measured(results: list[Result], variant: str, baseline: str, compared: list[Score]) -> Measured:
    """Compute a variant's scores over its seeds, and the differences of the ``compared`` scores to the baseline."""
    own = [result.scores() for result in results if result.variant == variant]
    spreads = {}
    for name in dict.fromkeys(name for scores in own for name in scores):
        values = np.array([scores.get(name, np.nan) for scores in own])
        values = values[np.isfinite(values)]
        deviation = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        spreads[name] = Spread(float(values.mean()) if len(values) else float("nan"), deviation, len(values))
    found = {score.name: difference(results, variant, baseline, score) for score in compared}
    return Measured(spreads, {name: one for name, one in found.items() if one is not None})


def variant_table(rows: list[Row]) -> pd.DataFrame:
    """Return the rows as a table of numbers, which ``results.csv`` holds."""
    table = []
    for row in rows:
        columns: dict[str, Any] = {"variant": row.variant.name, "label": row.variant.label, "seeds": row.seeds}
        if row.seeds:
            columns |= _columns(row.all, row.seeds)
            for name, part in row.subsets.items():
                columns |= {f"{name}_{column}": value for column, value in _columns(part, row.seeds).items()}
            columns |= {cost.name: row.costs.get(cost.name) for cost in COSTS}
            columns |= {"parameters": row.parameters, "commit": " ".join(row.commits)}
        table.append(columns | {f"paper_{score}": value for score, value in row.variant.paper.items()})
    return pd.DataFrame(table)


def _columns(part: Measured, seeds: int) -> dict[str, float | str]:
    columns: dict[str, float | str] = {name: spread.mean for name, spread in part.scores.items()}
    columns |= {f"{name}_std": spread.deviation for name, spread in part.scores.items()}
    # A mean over some of the seeds must not look like one over all.
    columns |= {f"{name}_seeds": spread.seeds for name, spread in part.scores.items() if spread.seeds < seeds}
    for name, found in part.differences.items():
        columns |= {f"{name}_difference": found.mean}
        columns |= {f"{name}_difference_low": found.low, f"{name}_difference_high": found.high}
        columns[f"{name}_difference_by_seed"] = " ".join(f"{value:+.2f}" for value in found.by_seed)
        if found.over_seeds is not None:
            low, high = found.over_seeds
            columns |= {f"{name}_difference_seeds_low": low, f"{name}_difference_seeds_high": high}
    return columns
