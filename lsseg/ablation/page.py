"""A suite's report: its figures, one HTML file that needs no other, and its table for a paper in LaTeX."""

import base64
import html
import json
import re
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pylatexenc.latexencode import RULE_DICT, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

from lsseg.ablation.results import Result, scores_of, with_classes
from lsseg.errors import InputError
from lsseg.files import read_jsonl, write_text

BY_IMAGE = {
    "semantic": "the mean IoU of the classes in an image",
    "instances": "F1 of the objects found with a score of at least one half, mean over IoU thresholds",
}
LATEX = UnicodeToLatexEncoder(
    conversion_rules=[UnicodeToLatexConversionRule(RULE_DICT, {ord("ᴺ"): r"\ensuremath{^N}"}), "defaults"],
    unknown_char_policy="keep",  # other scripts, which XeLaTeX sets
    unknown_char_warning=False,
)


def write_page(
    path: Path,
    title: str,
    caption: str,
    note: str,
    tables: dict[str, pd.DataFrame],
    figures: list[Path],
    results: list[Result],
    labels: dict[str, str],
) -> None:
    """Write the page.

    Args:
        path: Where to.
        title: The suite's name.
        caption: What was tested.
        note: How the scores are made.
        tables: By title; the first, without one, is the suite's.
        figures: PNG files.
        results: Its finished runs; the first seed of each variant gives the pictures.
        labels: Of the variants, by name.
    """
    main, *others = tables.items()
    pictures: dict[str, Any] = {}
    shown: set[str] = set()
    for result in results:
        if result.variant not in shown and (entries := _gallery(result.folder)):
            shown.add(result.variant)
            label = labels[result.variant]
            pictures[label if label not in pictures else f"{label} ({result.variant})"] = entries
    content = {
        "title": html.escape(title),
        "caption": html.escape(caption),
        "note": html.escape(note),
        "table": _table(main[1]),
        "by_class": "\n".join(f"<h2>{html.escape(name)}</h2><div class=scroll>{_table(t)}</div>" for name, t in others),
        "figures": "\n".join(_picture(figure) for figure in figures),
        "by_image": BY_IMAGE[results[0].summary.get("kind", "semantic")],
        # Within a script element nothing is escaped, so nothing may begin there.
        "pictures": json.dumps(pictures, ensure_ascii=False).replace("<", "\\u003c"),
    }
    template = files("lsseg.ablation").joinpath("page.html").read_text(encoding="utf-8")
    write_text(path, Template(template).substitute(content))


def write_latex(path: Path, table: pd.DataFrame, caption: str) -> None:
    """Write a table for the package booktabs: one tabular, so that the paper chooses float and label."""
    lines = [f"% {caption}", rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [_latex_row(table.columns), r"\midrule", *map(_latex_row, table.to_numpy().tolist())]
    write_text(path, "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")


def _latex_row(cells: Any) -> str:
    signs = (re.sub(r"(?<![\w-])-(?=\d)", "−", str(cell)) for cell in cells)  # a hyphen is no minus sign
    return " & ".join(LATEX.unicode_to_latex(cell) for cell in signs) + r" \\"


def _table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.to_numpy().tolist()
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _picture(path: Path) -> str:
    titles = {"scores": "Scores", "curves": "Learning curves", "classes": "By class", "examples": "Examples"}
    title = titles.get(path.stem, path.stem)
    return f'<h2>{title}</h2><img class="figure" alt="{title}" src="{_source(path)}">'


def _gallery(run: Path) -> list[dict[str, Any]]:
    """A run's best and worst images with their files as data; none of a run that kept none."""
    index = run / "gallery" / "gallery.json"
    if not index.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(index.read_text())
        for entry in entries:
            entry["frames"] = [
                {"label": frame["label"], "source": _source(index.parent / frame["file"])} for frame in entry["frames"]
            ]
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise InputError(f"{index} is damaged; delete {index.parent}") from error
    return entries


def _source(path: Path) -> str:
    kind = {".png": "png", ".jpg": "jpeg"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


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
