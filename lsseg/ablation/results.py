"""What the runs of a suite left on disk, as tables."""

import fnmatch
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from lsseg.ablation.instance_results import score_of
from lsseg.ablation.scores import COSTS, KINDS, Kind, kind_of
from lsseg.ablation.statistics import RESAMPLES, Difference, Scored, of_counts, paired_difference
from lsseg.errors import InputError
from lsseg.functional import boundary_f1, class_iou, pixel_accuracy

SUMMARY_KEYS = {
    "scores", "train_seconds_per_image", "test_seconds_per_image", "parameters", "step", "classes", "device",
}  # fmt: skip
# Of the precision of detections, which has no sums that could be weighted.
FEW_RESAMPLES = 1_000


@dataclass(frozen=True)
class Result(ABC):
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

    resamples = RESAMPLES
    needed = frozenset[str]()

    @abstractmethod
    def subset(self, pattern: str) -> "Result":
        """The same run on the test images of matching names."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Percentages over its test images."""

    @abstractmethod
    def scored(self, score: str) -> Scored:
        """A score as a function of how often each test image counts."""

    @property
    def version(self) -> str:
        """The commit that made it, ``+`` behind it where files were changed; ``unknown`` outside a git checkout."""
        path = self.folder / "environment.json"
        noted = _read(path, lambda: json.loads(path.read_text()), "delete it") if path.is_file() else {}
        commit = str(noted.get("git_commit") or "unknown")[:10]
        return commit + ("+" if noted.get("git_changed_files") else "")

    def _kept(self, pattern: str) -> npt.NDArray[np.bool_]:
        return np.array([fnmatch.fnmatch(str(name), pattern) for name in self.names], dtype=bool)


class SemanticResult(Result):
    """Its counts are ``overlap``, N×C×3, and ``boundary``, N×radii×C×4."""

    needed = frozenset(("overlap", "boundary"))

    def subset(self, pattern: str) -> "SemanticResult":
        """The same run on the test images of matching names."""
        keep = self._kept(pattern)
        counts = {name: values[keep] for name, values in self.counts.items()}
        return replace(self, names=self.names[keep], counts=counts, summary={**self.summary, "scores": {}})

    def scores(self) -> dict[str, float]:
        """Percentages over its test images."""
        every = np.ones((1, len(self.names)))
        scores = {score: float(self.scored(score)(every)[0]) for score in KINDS["semantic"].compared}
        scores["accuracy"] = float(pixel_accuracy(torch.from_numpy(self.counts["overlap"].sum(0))))
        known = self.summary["scores"]
        scores |= {score: known[score] for score in KINDS["semantic"].titles if score not in scores and score in known}
        return {name: 100 * value for name, value in scores.items()}

    def scored(self, score: str) -> Scored:
        """A score as a function of how often each test image counts."""
        if score == "miou":
            return of_counts(self.counts["overlap"], class_iou)
        radius = ("boundary_f1_1px", "boundary_f1_2px", "boundary_f1_3px").index(score)
        return of_counts(self.counts["boundary"][:, radius], boundary_f1)


class InstanceResult(Result):
    """Its counts are ``detections`` and ``objects`` of :class:`~lsseg.metrics.InstanceMatches`, and ``index``, N."""

    resamples = FEW_RESAMPLES
    needed = frozenset(("detections", "objects", "index"))

    def subset(self, pattern: str) -> "InstanceResult":
        """The same run on the test images of matching names; scores that need the masks again are left out."""
        keep = self._kept(pattern)
        index, detections = self.counts["index"][keep], self.counts["detections"]
        counts = {
            "index": index,
            "objects": self.counts["objects"][keep],
            "detections": detections[np.isin(detections[:, 0], index)],
        }
        every = np.ones((1, len(index)))
        part = replace(self, names=self.names[keep], counts=counts)
        scores = {score: float(part.scored(score)(every)[0]) for score in KINDS["instances"].compared}
        return replace(part, summary={**self.summary, "scores": scores})

    def scores(self) -> dict[str, float]:
        """Percentages over its test images, as the run's own evaluation found them."""
        known = self.summary["scores"]
        return {score: 100 * known[score] for score in KINDS["instances"].titles if score in known}

    def scored(self, score: str) -> Scored:
        """A score as a function of how often each test image counts."""
        detections, objects, index = (self.counts[name] for name in ("detections", "objects", "index"))
        return lambda weights: score_of(score, detections, objects, index, weights)


RESULTS: dict[str, type[Result]] = {"semantic": SemanticResult, "instances": InstanceResult}


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
    kind: type[Result]

    def counts() -> tuple[npt.NDArray[np.str_], dict[str, npt.NDArray[Any]]]:
        with (run / "test_images.npz").open("rb") as raw, np.load(raw) as file:
            kept = {name: file[name] for name in file.files if name not in ("names", "classes")}
            missing = kind.needed - kept.keys()
            if missing:
                raise KeyError(*missing)
            return file["names"], kept

    advice = f"delete {run} and start `lsseg ablate` again"
    summary = _read(run / "test.json", lambda: json.loads((run / "test.json").read_text()), advice)
    if not isinstance(summary, dict) or not summary.keys() >= SUMMARY_KEYS:
        raise InputError(f"{run / 'test.json'} lacks results; {advice}")
    kind = RESULTS[summary.get("kind", "semantic")]
    return kind(variant, seed, run, summary, *_read(run / "test_images.npz", counts, advice))


def by_class_of(results: list[Result]) -> dict[str, str]:
    """The scores that classes have in some of the runs, and their titles."""
    known = {key.partition("/")[0] for result in results for key in result.summary["scores"] if "/" in key}
    return {score: title for score, title in kind_of_results(results).by_class.items() if score in known}


def kind_of_results(results: list[Result]) -> Kind:
    """The scores that all runs have."""
    return kind_of({result.summary.get("kind", "semantic") for result in results})


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
    first, second = ([side[seed].scored(score) for seed in seeds] for side in (ours, theirs))
    images = len(ours[seeds[0]].names)
    return paired_difference(first, second, images, ours[seeds[0]].resamples).times(100)


def run_table(results: list[Result]) -> pd.DataFrame:
    """One row for each run: scores in percent, those of every class among them, and costs."""
    rows = []
    for result in results:
        per_class = {k: 100 * v for k, v in result.summary["scores"].items() if "/" in k}
        costs = {key: result.summary[key] for key in (*COSTS, "parameters")}
        made = {"variant": result.variant, "seed": result.seed, "commit": result.version}
        rows.append({**made, **result.scores(), **costs, **per_class})
    return pd.DataFrame(rows)


def variant_table(results: list[Result], description: dict[str, Any]) -> pd.DataFrame:
    """One row for each variant: mean and spread over seeds, difference to the baseline, costs, the paper's number."""
    kind = kind_of_results(results)
    rows = []
    for variant in description["variants"]:
        baseline = variant.get("baseline") or description["baseline"]
        own = [result for result in results if result.variant == variant["name"]]
        row: dict[str, Any] = {"variant": variant["name"], "label": variant["label"], "seeds": len(own)}
        if own:
            row |= _means(own, "")
            for score in kind.compared:
                row |= _columns(difference(results, variant["name"], baseline, score), f"{score}_difference")
            for name, pattern in description["subsets"].items():
                part = [result.subset(pattern) for result in results]
                if not all(len(result.names) for result in part):
                    continue
                row |= _means([result for result in part if result.variant == variant["name"]], f"{name}_")
                found = difference(part, variant["name"], baseline, kind.main)
                row |= _columns(found, f"{name}_{kind.main}_difference")
            for cost in COSTS:
                values = [result.summary[cost] for result in own if result.summary[cost] is not None]
                row[cost] = float(np.mean(values)) if values else None
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
