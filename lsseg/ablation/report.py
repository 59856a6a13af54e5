"""A suite's table, in a terminal and on disk, and its figures."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from lsseg.ablation.page import draw_figures, write_latex, write_page
from lsseg.ablation.results import (
    Result,
    load_description,
    load_results,
    run_table,
    scores_of,
    variant_table,
    with_classes,
)
from lsseg.errors import InputError
from lsseg.files import write_text
from lsseg.metrics.scores import COSTS, Score


def write_report(folder: Path, console: Console) -> None:
    """Write a suite's table, figures and pages into its folder, and print the table.

    ``report.html`` holds all of it; ``results.md``, ``results.csv``, ``results.tex``, ``runs.csv`` and ``figures/``.

    Raises:
        InputError: If the folder holds no suite, or no run of it is finished.
    """
    description = load_description(folder)
    results = load_results(folder, description)
    if not results:
        raise InputError(f"{folder}: no run of the suite is finished")
    table = variant_table(results, description)
    write_text(folder / "results.csv", table.to_csv(index=False))
    write_text(folder / "runs.csv", run_table(results).to_csv(index=False))
    scores = scores_of(results)
    for name, pattern in description["subsets"].items():
        if not all(len(result.subset(pattern).names) for result in results):
            console.print(f"subset {name}: no test image has a name like {pattern}", style="red", highlight=False)
    shown = _shown(table, description, scores)
    figures = draw_figures(folder, results, description, table)
    caption, note = _caption(results, description), _note(description)
    mixed = _mixed(results)
    if mixed:
        console.print(mixed, style="yellow", highlight=False, soft_wrap=True)
        note = f"{note} {mixed}"
    by_class = {f"{s.class_label} by class": _by_class(results, description, s) for s in with_classes(results)}
    tables = {"": shown, **by_class}
    write_text(folder / "results.md", _markdown(description["name"], caption, note, tables, figures))
    labels = {variant["name"]: variant["label"] for variant in description["variants"]}
    write_page(folder / "report.html", description["name"], caption, note, tables, figures, results, labels)
    brief = _brief(shown, scores)
    write_latex(folder / "results.tex", brief, f"{description['name']}: {caption}")
    console.print(_rich(brief, f"{description['name']}: {caption}"))
    made = f"report: {folder / 'report.html'}, results.md, .csv, .tex, runs.csv, figures/"
    console.print(made, markup=False, highlight=False)


def _shown(table: pd.DataFrame, description: dict[str, Any], scores: list[Score]) -> pd.DataFrame:
    """The columns a reader wants, as text."""
    rows = []
    records: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    compared = [score for score in scores if score.compared]
    main, second = compared[0], compared[1]
    last = scores.index(compared[-1]) + 1
    for row in records:
        shown = {"method": row["label"], **_score(row, main, table)}
        shown[f"Δ {main.label} [95 %]"] = _interval(row, f"{main.name}_difference")
        by_seed = row.get(f"{main.name}_difference_by_seed")
        shown[f"Δ {main.label} by seed"] = by_seed if isinstance(by_seed, str) else "–"
        shown |= _over_seeds(row, main, table)
        for name in description["subsets"]:
            shown[f"{main.label} {name}"] = _spread(row, f"{name}_{main.name}")
            shown[f"Δ {name} [95 %]"] = _interval(row, f"{name}_{main.name}_difference")
        for score in scores[1:last]:
            shown |= _score(row, score, table)
        shown[f"Δ {second.label} [95 %]"] = _interval(row, f"{second.name}_difference")
        shown |= _over_seeds(row, second, table)
        for score in scores[last:]:
            shown |= _score(row, score, table)
        for cost in COSTS:
            shown[cost.label] = _number(_times(row.get(cost.name), cost.shown(1)), 1)
            if f"paper_{cost.name}" in table:
                shown[f"{cost.label} in the paper"] = _number(_times(row[f"paper_{cost.name}"], cost.shown(1)), 0)
        shown["parameters"] = f"{row['parameters'] / 1e6:.2f} M" if _given(row.get("parameters")) else "–"
        shown["seeds"] = str(row["seeds"])
        shown["commit"] = row["commit"] if isinstance(row.get("commit"), str) else "–"
        rows.append(shown)
    return pd.DataFrame(rows)


def _score(row: dict[str, Any], score: Score, table: pd.DataFrame) -> dict[str, str]:
    """A score and, where the suite gives one, the paper's."""
    cited = f"paper_{score.name}"
    if score.name not in table and cited not in table:
        return {}
    paper = {f"{score.label} in the paper": _number(row[cited], 1)} if cited in table else {}
    return {score.label: _spread(row, score.name), **paper}


def _over_seeds(row: dict[str, Any], score: Score, table: pd.DataFrame) -> dict[str, str]:
    """The interval of a difference over seeds, where a row has enough of them."""
    low, high = (f"{score.name}_difference_seeds_{end}" for end in ("low", "high"))
    if low not in table:
        return {}
    text = f"[{row[low]:+.2f}, {row[high]:+.2f}]" if _given(row.get(low)) else "–"
    return {f"Δ {score.label}, 95 % over seeds": text}


def _caption(results: list[Result], description: dict[str, Any]) -> str:
    planned = sum(len(runs) for runs in description["runs"].values())
    missing = f", {planned - len(results)} of {planned} runs missing" if planned > len(results) else ""
    steps = sorted({result.summary["step"] for result in results})
    updates = "/".join(map(str, steps))
    images = "/".join(map(str, sorted({len(result.names) for result in results})))
    devices = ", ".join(sorted({result.summary["device"] for result in results}))
    return f"{images} test images, {updates} updates, {devices}{missing}"


def _mixed(results: list[Result]) -> str:
    """A warning where rows were made by different versions of the code; nothing where all are of one."""
    versions = sorted({result.version for result in results})
    if len(versions) < 2:
        return ""
    return (
        f"Attention: these runs were made by {len(versions)} versions of the code ({', '.join(versions)}), so that "
        "differences between rows may be differences between versions: delete the older ones and run them again."
    )


def _note(description: dict[str, Any]) -> str:
    """How the scores and differences are made."""
    labels = {v["name"]: v["label"] for v in description["variants"]}
    main = description["baseline"]
    of: dict[str, list[str]] = {}
    for row in description["variants"]:
        if row.get("baseline") not in (None, main, row["name"]):
            of.setdefault(row["baseline"], []).append(f"“{row['label']}”")
    others = "".join(f", of {', '.join(rows)} to “{labels[name]}”" for name, rows in of.items())
    return (
        f"Scores in percent, mean ± standard deviation over seeds. Δ is the paired difference to “{labels[main]}”"
        f"{others} in percentage points over the seeds that both have, with a bootstrap 95 % interval over the test "
        "images. How far other seeds would move it, the differences by seed tell, and from three seeds on a 95 % "
        "interval of their mean (Student's t): believe in a gain that both intervals keep from zero."
    )


def _markdown(name: str, caption: str, note: str, tables: dict[str, pd.DataFrame], figures: list[Path]) -> str:
    lines = [f"# {name}", "", f"{caption}."]
    for title, table in tables.items():
        lines += ["", *([f"## {title}", ""] if title else []), *_rows(table)]
        lines += [] if title else ["", note]
    lines.append("")
    for path in figures:
        lines += [f"![{path.stem}](figures/{path.name})", ""]
    return "\n".join(lines)


def _by_class(results: list[Result], description: dict[str, Any], score: Score) -> pd.DataFrame:
    classes = results[0].summary["classes"]
    rows = []
    for variant in description["variants"]:
        own = [result.summary["scores"] for result in results if result.variant == variant["name"]]
        values = {name: [100 * scores.get(f"{score.classes}/{name}", np.nan) for scores in own] for name in classes}
        row = {name: _number(float(np.nanmean(v)) if np.isfinite(v).any() else None, 1) for name, v in values.items()}
        if own or not variant.get("cite"):
            rows.append({"method": variant["label"], **row})
        paper = {name: variant["paper"].get(f"{score.classes}/{name}") for name in classes}
        if any(number is not None for number in paper.values()):
            rows.append({"method": f"{variant['label']}, in the paper", **{n: _number(x, 1) for n, x in paper.items()}})
    return pd.DataFrame(rows)


def _rows(table: pd.DataFrame) -> list[str]:
    head = list(table.columns)
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(map(str, row)) + " |" for row in [head, ruler, *table.to_numpy().tolist()]]


def _brief(shown: pd.DataFrame, scores: list[Score]) -> pd.DataFrame:
    """The columns that fit into 80 characters, or onto a page; the files have them all."""
    first, second = [re.escape(score.label) for score in scores if score.compared][:2]
    wanted = rf"(method|{first}( in the paper)?|Δ {first} \[.*|(Δ )?{second}( \[.*)?)"
    return shown[[name for name in shown.columns if re.fullmatch(wanted, name)]]


def _rich(shown: pd.DataFrame, title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown.columns:
        left = name == "method"
        header = name.replace(" [", "\n[").replace("boundary F ", "boundary F\n").replace(" in the", "\nin the")
        table.add_column(header, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in shown.to_numpy().tolist():
        table.add_row(*(str(cell).replace(" [", "\n[") for cell in row))
    return table


def _given(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def _times(value: Any, factor: float) -> float | None:
    return value * factor if _given(value) else None


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if _given(value) else "–"


def _spread(row: dict[str, Any], score: str) -> str:
    if not _given(row.get(score)):
        return "–"
    spread, seeds = row.get(f"{score}_std"), row.get(f"{score}_seeds")
    text = f"{row[score]:.2f} ± {spread:.2f}" if _given(spread) else f"{row[score]:.2f}"
    return f"{text} ({seeds:.0f} of {row['seeds']} seeds)" if _given(seeds) else text


def _interval(row: dict[str, Any], name: str) -> str:
    if not _given(row.get(name)):
        return "–"
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"
