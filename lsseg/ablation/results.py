"""What the runs of a suite left on disk, and the rows of its table that they make."""

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
    "parameters": int,
    "step": int,
    "classes": list,
    "device": str,
}
# Of the precision of detections, which has no sums that could be weighted.
FEW_RESAMPLES = 1_000


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        variant: Of which method.
        seed: Its seed.
        folder: Where it is.
        summary: Its ``test.json``.
        names: Of its test images.
        counts: What it noted of them, by name.
    """

    variant: str
    seed: int
    folder: Path
    summary: dict[str, Any]
    names: npt.NDArray[np.str_]
    counts: dict[str, npt.NDArray[Any]]

    @property
    def kind(self) -> str:
        """The kind of its task."""
        return kind_of_summary(self.summary)

    @property
    def version(self) -> str:
        """The commit that made it, ``+`` behind it where files were changed; ``unknown`` outside a git checkout."""
        path = self.folder / "environment.json"
        noted = _read(path, lambda: json.loads(path.read_text()), "delete it") if path.is_file() else {}
        if not isinstance(noted, dict):
            raise InputError(f"{path} is damaged; delete it")
        commit = str(noted.get("git_commit") or "unknown")[:10]
        return commit + ("+" if noted.get("git_changed_files") else "")

    def subset(self, pattern: str) -> "Result":
        """The same run on the test images of matching names; scores that need the images again are left out."""
        keep = np.array([fnmatch.fnmatch(str(name), pattern) for name in self.names], dtype=bool)
        counts = {name: rows[keep] for name, rows in self.counts.items() if len(rows) == len(keep)}
        if "detections" in self.counts:  # several of an image
            detections = self.counts["detections"]
            counts["detections"] = detections[np.isin(detections[:, 0], counts["index"])]
        return replace(self, names=self.names[keep], counts=counts, summary={**self.summary, "scores": {}})

    def scores(self) -> dict[str, float]:
        """Scores by name, as tables show them: those of label maps from its counts, others as the run found them."""
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
        """A score as a function of how often each test image counts; None of one that the run has no counts of."""
        if score.of_images is None or not self._can_be_weighted(score):
            return None
        return partial(score.of_images, self.counts)

    def _can_be_weighted(self, score: Score) -> bool:
        return not isinstance(score.of_images, Summed) or score.of_images.counts in self.counts


def kind_of_summary(summary: dict[str, Any]) -> str:
    """The kind of a run's task."""
    kind: str = summary.get("kind", "semantic")
    return kind


@dataclass(frozen=True)
class Description:
    """What a suite is, as the runner noted it.

    Attributes:
        name: Its name.
        variants: Its rows.
        runs: Names of the runs by variant and seed.
        baseline: The variant that the others are compared with.
        subsets: Patterns of the names of test images that are scored apart, by what tables call them.
    """

    name: str
    variants: tuple[Variant, ...]
    runs: dict[str, dict[str, str]]
    baseline: str
    subsets: dict[str, str]

    @property
    def labels(self) -> dict[str, str]:
        """What tables call the variants."""
        return {variant.name: variant.label for variant in self.variants}


def load_description(folder: Path) -> Description:
    """What the suite is, as the runner noted it.

    Raises:
        InputError: If the folder holds no suite.
    """
    path = folder / "suite.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no suite: {path.name}, which `lsseg ablate` writes, is missing")
    noted = _read(path, lambda: json.loads(path.read_text()), "start `lsseg ablate` again")
    try:
        return _described(noted)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} describes no suite; start `lsseg ablate` again") from error


def _described(noted: Any) -> Description:
    """The description, each part of which is what it must be; raises what Python raises where one is not."""

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
    """The finished runs of a suite, in its order.

    Raises:
        InputError: If a run's files are damaged; names the file.
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
    """The scores that classes have in some of the runs."""
    known = {key.partition("/")[0] for result in results for key in result.summary["scores"] if "/" in key}
    return [score for score in scores_of(results) if score.class_label and score.classes in known]


def scores_of(results: list[Result]) -> list[Score]:
    """The scores of the one kind that all runs have, in the order of tables.

    Raises:
        InputError: If they have several.
    """
    kinds = {result.kind for result in results}
    if len(kinds) != 1:
        raise InputError(f"the runs of one suite must have one kind of scores, not {' and '.join(sorted(kinds))}")
    return [score for score in of_kind(kinds.pop()) if score.in_suites]


def _read(path: Path, load: Callable[[], Any], advice: str) -> Any:
    try:
        return load()
    except (ValueError, KeyError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or missing; {advice}") from error


def difference(results: list[Result], variant: str, baseline: str, score: Score) -> Difference | None:
    """Paired difference of a variant to the baseline over their common seeds, in percentage points."""
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
    """One row for each run: scores in percent, those of every class among them, and costs."""
    rows = []
    for result in results:
        per_class = {k: 100 * v for k, v in result.summary["scores"].items() if "/" in k}
        costs = {key: result.summary[key] for key in (*(cost.name for cost in COSTS), "parameters")}
        made = {"variant": result.variant, "seed": result.seed, "commit": result.version}
        rows.append({**made, **result.scores(), **costs, **per_class})
    return pd.DataFrame(rows)


class Spread(NamedTuple):
    """A score of a variant's runs, in the unit of tables.

    Attributes:
        mean: Over seeds.
        deviation: Over seeds; NaN of a single one.
        seeds: How many have the score: a run that found nothing has no boundary score.
    """

    mean: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class Measured:
    """What the runs of a variant score on the test images, or on a subset of them.

    Attributes:
        scores: By name.
        differences: To the variant's baseline, by the name of the score.
    """

    scores: dict[str, Spread]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Row:
    """A row of a suite's table.

    Attributes:
        variant: Which; its numbers of the paper are in it.
        seeds: How many of its runs are finished.
        all: On all test images.
        subsets: On the subsets that have an image, by their names.
        costs: Means by name, of those that were measured.
        parameters: Of the network; None of a row that is only cited.
        commits: That made its runs.
    """

    variant: Variant
    seeds: int
    all: Measured
    subsets: dict[str, Measured]
    costs: dict[str, float]
    parameters: int | None
    commits: tuple[str, ...]


def rows_of(results: list[Result], description: Description) -> list[Row]:
    """One row for each variant: means and spreads over seeds, differences to the baseline, costs."""
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
        known = {c.name: [x for result in own if (x := result.summary[c.name]) is not None] for c in COSTS}
        costs = {name: float(np.mean(values)) for name, values in known.items() if values}
        commits = tuple(sorted({result.version for result in own}))
        whole = measured(results, variant.name, baseline, compared)
        parameters = own[0].summary["parameters"] if own else None
        rows.append(Row(variant, len(own), whole, subsets, costs, parameters, commits))
    return rows


def measured(results: list[Result], variant: str, baseline: str, compared: list[Score]) -> Measured:
    """The scores of a variant over its seeds, and how some of them differ from its baseline's."""
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
    """The rows as columns of numbers, as ``results.csv`` has them."""
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
