"""Draws the figures of a suite's report, and writes its HTML page, which needs no other file, and its LaTeX table."""

import base64
import html
import json
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pylatexenc.latexencode import RULE_DICT, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

from lsseg.ablation.results import Description, Result, Row, scores_of, with_classes
from lsseg.errors import InputError
from lsseg.files import read_jsonl, write_text

BY_IMAGE = {
    "semantic": "the mean IoU of the classes in an image",
    "instances": "the F1 of the detections with a score of at least ½, averaged over IoU thresholds",
}
LATEX = UnicodeToLatexEncoder(
    conversion_rules=[UnicodeToLatexConversionRule(RULE_DICT, {ord("ᴺ"): r"\ensuremath{^N}"}), "defaults"],
    unknown_char_policy="keep",  # XeLaTeX can set other scripts
    unknown_char_warning=False,
)


class Report(NamedTuple):
    """Holds the content of a suite's pages.

    Attributes:
        title: The suite's name.
        caption: The numbers of test images, updates and missing runs, and the devices.
        note: The explanation of the scores.
        tables: Tables by title; the first one has an empty title and is the suite's table.
        figures: Paths of the PNG files.
    """

    title: str
    caption: str
    note: str
    tables: dict[str, pd.DataFrame]
    figures: list[Path]


def write_page(path: Path, report: Report, results: list[Result], labels: dict[str, str]) -> None:
    """Write the HTML page.

    Args:
        path: Path of the page.
        report: Content of the page.
        results: The finished runs; the first run of each variant that has a gallery gives the pictures.
        labels: Labels of the variants, by name.
    """
    main, *others = report.tables.items()
    pictures: dict[str, Any] = {}
    shown: set[str] = set()
    for result in results:
        if result.variant not in shown and (entries := _gallery(result.folder)):
            shown.add(result.variant)
            label = labels[result.variant]
            pictures[label if label not in pictures else f"{label} ({result.variant})"] = entries
    content = {
        "title": html.escape(report.title),
        "caption": html.escape(report.caption),
        "note": html.escape(report.note),
        "table": _table(main[1]),
        "by_class": "\n".join(f"<h2>{html.escape(name)}</h2><div class=scroll>{_table(t)}</div>" for name, t in others),
        "figures": "\n".join(_picture(figure) for figure in report.figures),
        "by_image": BY_IMAGE[results[0].kind],
        # HTML does not decode entities in a script element, so the JSON text itself must hold no tag.
        "pictures": json.dumps(pictures, ensure_ascii=False).replace("<", "\\u003c"),
    }
    template = files("lsseg.ablation").joinpath("page.html").read_text(encoding="utf-8")
    write_text(path, Template(template).substitute(content))


def write_latex(path: Path, table: pd.DataFrame, caption: str) -> None:
    """Write a table as one tabular for LaTeX's package booktabs; the paper itself adds the float and the label."""
    lines = [f"% {caption}", rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    lines += [_latex_row(table.columns), r"\midrule", *map(_latex_row, table.to_numpy().tolist())]
    write_text(path, "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n")


def _latex_row(cells: Any) -> str:
    signs = (re.sub(r"(?<![\w-])-(?=\d)", "−", str(cell)) for cell in cells)  # LaTeX prints - as a hyphen
    return " & ".join(LATEX.unicode_to_latex(cell) for cell in signs) + r" \\"


def _table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.to_numpy().tolist()
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _picture(path: Path) -> str:
    titles = {
        "scores": "Scores",
        "curves": "Learning curves",
        "classes": "Scores by class",
        "examples": "Example predictions",
    }
    title = titles.get(path.stem, path.stem)
    return f'<h2>{title}</h2><img class="figure" alt="{title}" src="{_source(path)}">'


def _gallery(run: Path) -> list[dict[str, Any]]:
    """Return a run's best and worst images with their files as data URLs; a run without a gallery has none."""
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


def draw_figures(folder: Path, results: list[Result], description: Description, rows: list[Row]) -> list[Path]:
    """Draw all figures into ``folder/figures`` and return their paths."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    labels = {row.variant.name: row.variant.label for row in rows if row.seeds}
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(labels)}
    figures = {
        "scores": _scores(rows, description, results, colors),
        "curves": _curves(results, labels, colors),
        "classes": _classes(results, labels, colors),
        "examples": _examples(results, labels),
    }
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(target / f"{name}.png", dpi=120)
            paths.append(target / f"{name}.png")
    return paths


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _scores(rows: list[Row], description: Description, results: list[Result], colors: dict[str, str]) -> Figure:
    """Draw every seed's scores and, below, each variant's differences to its baseline with their intervals."""
    compared = [score for score in scores_of(results) if score.compared]
    rows = [row for row in rows if row.seeds]
    labels = {row.variant.name: row.variant.label for row in rows}
    bases = {row.variant.name: row.variant.baseline or description.baseline for row in rows}
    to = {name: f" − {labels[base]}" for name, base in bases.items() if base in labels}
    others = [row for row in rows if (row.variant.baseline or description.baseline) != row.variant.name]
    longest = max(len(label) + len(to.get(name, "")) for name, label in labels.items())
    figure = _figure(10.5 + 0.08 * longest, 2.2 + 0.35 * (2 * len(rows)))
    both = any(row.all.differences for row in others)
    axes = figure.subplots(2 if both else 1, len(compared), squeeze=False)
    for column, score in enumerate(compared):
        for y, (name, color) in enumerate(colors.items()):
            values = [result.scores().get(score.name, np.nan) for result in results if result.variant == name]
            axes[0, column].plot(values, [y] * len(values), "o", color=color, alpha=0.6)
            mean = np.mean([value for value in values if np.isfinite(value)] or [np.nan])
            axes[0, column].plot(mean, y, "|", color=color, markersize=22, markeredgewidth=2.5)
        axes[0, column].set(title=f"{score.label} (%)", ylim=(len(rows) - 0.5, -0.5))
        _name_rows(axes[0, column], list(labels.values()), column == 0)
        if both:
            _draw_differences(axes[1, column], score.name, others, colors)
            axes[1, column].set(title="difference, 95 %")
            _name_rows(
                axes[1, column], [labels[r.variant.name] + to.get(r.variant.name, "") for r in others], column == 0
            )
    return figure


def _draw_differences(axis: Any, score: str, rows: list[Row], colors: dict[str, str]) -> None:
    """Draw differences with a thick interval over test images and, for enough seeds, a thin one over seeds."""
    thin = False
    for y, row in enumerate(rows):
        found, color = row.all.differences.get(score), colors[row.variant.name]
        if found is None:
            continue
        axis.plot([found.low, found.high], [y, y], color=color, linewidth=2.5)
        if found.over_seeds is not None:
            axis.plot(found.over_seeds, [y, y], color=color, linewidth=0.8)
            thin = True
        axis.plot(found.mean, y, "o", color=color)
    axis.axvline(0, color="k", linewidth=0.8)
    axis.set(xlabel="thin line: over seeds" if thin else "", ylim=(len(rows) - 0.5, -0.5))


def _name_rows(axis: Any, names: list[str], visible: bool) -> None:
    axis.set_yticks(range(len(names)), names if visible else [""] * len(names))
    axis.grid(axis="x", alpha=0.3)


def _curves(results: list[Result], labels: dict[str, str], colors: dict[str, str]) -> Figure:
    """Draw the training loss and validation scores by step, with one line for each run."""
    # The loss has different terms in different methods, so the cross-entropy is drawn if a run has logged it.
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


def _classes(results: list[Result], labels: dict[str, str], colors: dict[str, str]) -> Figure:
    """Draw the scores of every class, averaged over seeds."""
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


def _examples(results: list[Result], labels: dict[str, str]) -> Figure | None:
    """Draw a few test images in rows, with the prediction of every variant's first seed.

    There is no figure if no image has a prediction of every variant.
    """
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
