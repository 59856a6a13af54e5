"""What the runs of a suite left on disk, as tables, and whether a difference is more than the luck of the images.

Legend: R resamples, N test images. A score of a run is a function of how often each test image counts: it maps R×N
weights to R numbers.
"""

import fnmatch
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from lsseg.errors import InputError
from lsseg.metrics.scores import COSTS, Score, Summed, of_kind

Scored = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
RESAMPLES = 10_000
FEWEST_SEEDS = 3  # of an interval over seeds
CHUNK = 1_000  # resamples at a time: R×C×K float64 stays small for 150 classes


@dataclass(frozen=True)
class Difference:
    """A difference and its bootstrap 95 % interval, in the units of the score.

    Attributes:
        mean: Over seeds, on the test images as they are.
        low: Of the interval.
        high: Of the interval.
        by_seed: The difference of each seed.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds (Student's t); None of fewer than three.

        It says what other trainings might have shown on these test images, where low and high say what these trainings
        might have shown on others.
        """
        values = np.array(self.by_seed)
        if len(values) < FEWEST_SEEDS or not np.isfinite(values).all():
            return None
        reach = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
        return self.mean - reach, self.mean + reach

    def times(self, factor: float) -> "Difference":
        """The same in other units."""
        by_seed = tuple(factor * value for value in self.by_seed)
        return Difference(factor * self.mean, factor * self.low, factor * self.high, by_seed)


def resampling_weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.float64]:
    """How often each of N images is drawn in each resample, R×N."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def paired_difference(
    ours: Sequence[Scored], baseline: Sequence[Scored], images: int, resamples: int = RESAMPLES
) -> Difference:
    """Difference of the mean score of two methods, with a bootstrap interval over the test images.

    A data set's score is no mean over images, so each selection of images is scored as a data set. Each resample draws
    the same images for both methods and all seeds: what is hard about an image cancels. The interval says what other
    test images might have shown, not other seeds.

    Args:
        ours: The score of each seed.
        baseline: The same of the other method, for the same seeds and images.
        images: N.
        resamples: R.

    Raises:
        ValueError: If the two do not have the same seeds.
    """
    if len(ours) != len(baseline):
        raise ValueError(f"the two methods do not have the same seeds: {len(ours)} and {len(baseline)}")

    def differences(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([a(weights) - b(weights) for a, b in zip(ours, baseline, strict=True)])

    by_seed = differences(np.ones((1, images)))[:, 0]
    weights = resampling_weights(images, resamples)
    drawn = np.concatenate([differences(weights[i : i + CHUNK]).mean(0) for i in range(0, resamples, CHUNK)])
    known = drawn[~np.isnan(drawn)]  # a resample can lack what is scored
    low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
    return Difference(float(by_seed.mean()), float(low), float(high), tuple(map(float, by_seed)))


NEEDED = {"semantic": {"overlap", "boundary"}, "instances": {"detections", "objects", "index"}}
SUMMARY_KEYS = {
    "scores", "train_seconds_per_image", "test_seconds_per_image", "parameters", "step", "classes", "device",
}  # fmt: skip
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


def load_description(folder: Path) -> dict[str, Any]:
    """What the suite is, as the runner noted it.

    Raises:
        InputError: If the folder holds no suite.
    """
    path = folder / "suite.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no suite: {path.name}, which `lsseg ablate` writes, is missing")
    description: dict[str, Any] = _read(path, lambda: json.loads(path.read_text()), "start `lsseg ablate` again")
    if not isinstance(description, dict) or not description.keys() >= {
        "name",
        "variants",
        "runs",
        "baseline",
        "subsets",
    }:
        raise InputError(f"{path} describes no suite; start `lsseg ablate` again")
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
    def counts() -> tuple[npt.NDArray[np.str_], dict[str, npt.NDArray[Any]]]:
        with (run / "test_images.npz").open("rb") as raw, np.load(raw) as file:
            kept = {name: file[name] for name in file.files if name not in ("names", "classes")}
            missing = NEEDED[kind_of_summary(summary)] - kept.keys()
            if missing:
                raise KeyError(*missing)
            return file["names"], kept

    advice = f"delete {run} and start `lsseg ablate` again"
    summary = _read(run / "test.json", lambda: json.loads((run / "test.json").read_text()), advice)
    if not isinstance(summary, dict) or not summary.keys() >= SUMMARY_KEYS:
        raise InputError(f"{run / 'test.json'} lacks results; {advice}")
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
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
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


def variant_table(results: list[Result], description: dict[str, Any]) -> pd.DataFrame:
    """One row for each variant: mean and spread over seeds, difference to the baseline, costs, the paper's number."""
    scores = scores_of(results)
    rows = []
    for variant in description["variants"]:
        baseline = variant.get("baseline") or description["baseline"]
        own = [result for result in results if result.variant == variant["name"]]
        row: dict[str, Any] = {"variant": variant["name"], "label": variant["label"], "seeds": len(own)}
        if own:
            row |= _means(own, "")
            for score in scores:
                if score.compared:
                    found = difference(results, variant["name"], baseline, score)
                    row |= _columns(found, f"{score.name}_difference")
            for name, pattern in description["subsets"].items():
                part = [result.subset(pattern) for result in results]
                if not all(len(result.names) for result in part):
                    continue
                row |= _means([result for result in part if result.variant == variant["name"]], f"{name}_")
                found = difference(part, variant["name"], baseline, scores[0])
                row |= _columns(found, f"{name}_{scores[0].name}_difference")
            for cost in COSTS:
                values = [result.summary[cost.name] for result in own if result.summary[cost.name] is not None]
                row[cost.name] = float(np.mean(values)) if values else None
            row["parameters"] = own[0].summary["parameters"]
            row["commit"] = " ".join(sorted({result.version for result in own}))
        rows.append(row | {f"paper_{score}": value for score, value in variant["paper"].items()})
    return pd.DataFrame(rows)


def _means(results: list[Result], prefix: str) -> dict[str, float]:
    scores = pd.DataFrame([result.scores() for result in results])
    spread = scores.std(ddof=1) if len(scores) > 1 else scores.mean() * np.nan
    columns = {f"{prefix}{name}": float(value) for name, value in scores.mean().items()}
    columns |= {f"{prefix}{name}_std": float(value) for name, value in spread.items()}
    # A run that found nothing has no boundary score: a mean over the other seeds must not look like one over all.
    known = scores.notna().sum()
    return columns | {f"{prefix}{name}_seeds": int(count) for name, count in known.items() if count < len(scores)}


def _columns(found: Difference | None, name: str) -> dict[str, float | str]:
    if found is None:
        return {}
    by_seed = " ".join(f"{value:+.2f}" for value in found.by_seed)
    columns: dict[str, float | str] = {
        name: found.mean,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
        f"{name}_by_seed": by_seed,
    }
    if found.over_seeds is not None:
        columns |= dict(zip((f"{name}_seeds_low", f"{name}_seeds_high"), found.over_seeds, strict=True))
    return columns
