"""Figures of a suite: scores with intervals, learning curves, classes, and the same images by every method."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lsseg.ablation.results import Result, scores_of, with_classes
from lsseg.files import read_jsonl

COLORS = ("#4c6a92", "#d1742f", "#3f8f5f", "#9b4f96", "#b3a02b", "#5b9bb5", "#a4483f", "#666666")
EXAMPLES = 4


def draw_figures(folder: Path, results: list[Result], description: dict[str, Any], table: pd.DataFrame) -> list[Path]:
    """Draw all figures into ``folder/figures``; returns their paths."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    labels = {variant["name"]: variant["label"] for variant in description["variants"]}
    done = {result.variant for result in results}
    own = {variant["name"]: variant["baseline"] for variant in description["variants"] if variant.get("baseline")}
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(n for n in labels if n in done)}
    drawings: dict[str, Callable[..., Figure | None]] = {
        "scores": partial(_scores, table.set_index("variant"), own),
        "curves": _curves,
        "classes": _classes,
        "examples": _examples,
    }
    paths = []
    for name, draw in drawings.items():
        figure = draw(results, {v: labels[v] for v in colors}, colors, description["baseline"])
        if figure is not None:
            figure.savefig(target / f"{name}.png", dpi=120)
            paths.append(target / f"{name}.png")
    return paths


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _scores(
    table: pd.DataFrame,
    own: dict[str, str],
    results: list[Result],
    labels: dict[str, str],
    colors: dict[str, str],
    baseline: str,
) -> Figure:
    """Every seed's score, and the differences to the baseline (some to one of their own) with their intervals."""
    compared = [score for score in scores_of(results) if score.compared]
    others = [name for name in labels if own.get(name, baseline) != name]
    longest = max(len(labels[name]) + len(labels.get(own.get(name, ""), "")) for name in labels)
    figure = _figure(10.5 + 0.08 * longest, 2.2 + 0.35 * (2 * len(labels)))
    axes = figure.subplots(2 if others and baseline in labels else 1, len(compared), squeeze=False)
    for column, (score, label) in enumerate((score.name, score.label) for score in compared):
        for y, name in enumerate(labels):
            values = [result.scores().get(score, np.nan) for result in results if result.variant == name]
            axes[0, column].plot(values, [y] * len(values), "o", color=colors[name], alpha=0.6)
            axes[0, column].plot(np.mean(values), y, "|", color=colors[name], markersize=22, markeredgewidth=2.5)
        axes[0, column].set(title=f"{label} (%)", ylim=(len(labels) - 0.5, -0.5))
        _name_rows(axes[0, column], list(labels.values()), column == 0)
        if len(axes) > 1 and f"{score}_difference" in table:
            for y, name in enumerate(others):
                low, high, mean = (table.loc[name, f"{score}_difference{end}"] for end in ("_low", "_high", ""))
                axes[1, column].plot([low, high], [y, y], color=colors[name], linewidth=2.5)
                if f"{score}_difference_seeds_low" in table:
                    reach = [table.loc[name, f"{score}_difference_seeds_{end}"] for end in ("low", "high")]
                    axes[1, column].plot(reach, [y, y], color=colors[name], linewidth=0.8)
                axes[1, column].plot(mean, y, "o", color=colors[name])
            axes[1, column].axvline(0, color="k", linewidth=0.8)
            title = "Δ, 95 %" if own else f"Δ to {labels[baseline]}, 95 %"
            seeds = "thin: over seeds" if f"{score}_difference_seeds_low" in table else ""
            axes[1, column].set(title=title, xlabel=seeds, ylim=(len(others) - 0.5, -0.5))
            to = {name: f" − {labels[other]}" for name, other in own.items() if other in labels}
            _name_rows(axes[1, column], [labels[name] + to.get(name, "") for name in others], column == 0)
    return figure


def _name_rows(axis: Any, names: list[str], visible: bool) -> None:
    axis.set_yticks(range(len(names)), names if visible else [""] * len(names))
    axis.grid(axis="x", alpha=0.3)


def _curves(results: list[Result], labels: dict[str, str], colors: dict[str, str], baseline: str) -> Figure:
    """Training loss and validation scores by step, a line for each run."""
    # A method that logs its cross-entropy beside further terms is shown by it, the only term that several share.
    keys: list[tuple[tuple[str, ...], str, int]] = [(("train/cross_entropy", "train/loss"), "training loss", 1)]
    curves = [score for score in scores_of(results) if score.curve]
    keys += [((f"val/{s.name}",), f"validation {s.label} ({s.unit})", int(s.shown(1))) for s in curves]
    figure = _figure(4 * len(keys), 3.4)
    axes = figure.subplots(1, len(keys))
    named: set[str] = set()
    for result in results:
        rows = read_jsonl(result.folder / "metrics.jsonl")
        for axis, (names, _, factor) in zip(axes, keys, strict=True):
            key = next((name for name in names if any(name in row for row in rows)), names[-1])
            points = [(row["step"] + 1, factor * row[key]) for row in rows if key in row]
            label = labels[result.variant] if result.variant not in named and axis is axes[0] else None
            marker = "." if len(points) < 30 else ""
            steps, values = zip(*points, strict=True) if points else ((), ())
            axis.plot(steps, values, color=colors[result.variant], label=label, alpha=0.7, marker=marker)
        named.add(result.variant)
    for axis, (_, title, _) in zip(axes, keys, strict=True):
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return figure


def _classes(results: list[Result], labels: dict[str, str], colors: dict[str, str], baseline: str) -> Figure:
    """The scores of every class, mean over seeds."""
    classes = results[0].summary["classes"]
    figure = _figure(max(8, 0.35 * len(classes) * (len(labels) + 1) / 2 + 3), 5.5)
    by_class = {score.classes: score.class_label for score in with_classes(results)}
    axes = figure.subplots(len(by_class), 1, sharex=True, squeeze=False)[:, 0]
    width = 0.8 / len(labels)
    for axis, (score, title) in zip(axes, by_class.items(), strict=True):
        for i, name in enumerate(labels):
            runs = [result.summary["scores"] for result in results if result.variant == name]
            values = [[100 * scores.get(f"{score}/{c}", np.nan) for scores in runs] for c in classes]
            means = [np.nanmean(v) if np.isfinite(v).any() else np.nan for v in values]
            place = np.arange(len(classes)) + (i - (len(labels) - 1) / 2) * width
            axis.bar(place, means, width, color=colors[name], label=labels[name])
        axis.set_title(f"{title} (%)")
        axis.grid(axis="y", alpha=0.3)
    axes[-1].set_xticks(range(len(classes)), classes, rotation=30 if len(classes) > 8 else 0)
    axes[0].legend(fontsize=8)
    return figure


def _examples(results: list[Result], labels: dict[str, str], colors: dict[str, str], baseline: str) -> Figure | None:
    """The same test images by every method (its first seed): a row for each image."""
    first: dict[str, Result] = {}
    for result in results:
        first.setdefault(result.variant, result)
    folders = {name: first[name].folder / "panels" for name in labels}
    stems = [
        path.name.removesuffix("-prediction.png")
        for path in sorted(folders[next(iter(labels))].glob("plain-*-prediction.png"))
    ]
    stems = [s for s in stems if all((f / f"{s}-prediction.png").is_file() for f in folders.values())][:EXAMPLES]
    if not stems:
        return None
    any_folder = next(iter(folders.values()))
    columns = {"image": (any_folder, "image"), "truth": (any_folder, "truth")}
    columns |= {labels[name]: (folder, "prediction") for name, folder in folders.items()}
    height, width = np.asarray(Image.open(any_folder / f"{stems[0]}-image.png")).shape[:2]
    figure = _figure(2.6 * len(columns), (2.6 * height / width + 0.1) * len(stems) + 0.3)
    axes = figure.subplots(len(stems), len(columns), squeeze=False)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    for row, stem in zip(axes, stems, strict=True):
        for axis, (folder, part) in zip(row, columns.values(), strict=True):
            axis.imshow(np.asarray(Image.open(folder / f"{stem}-{part}.png")), interpolation="nearest")
            axis.set_axis_off()
    return figure
