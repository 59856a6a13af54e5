"""A suite's report as one HTML file that needs no other, and its table for a paper in LaTeX."""

import base64
import html
import json
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from pylatexenc.latexencode import RULE_DICT, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

from lsseg.ablation.results import Result
from lsseg.errors import InputError
from lsseg.files import write_text

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
        "figures": "\n".join(_figure(figure) for figure in figures),
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


def _figure(path: Path) -> str:
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
