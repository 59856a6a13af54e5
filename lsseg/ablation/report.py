"""Writes a suite's report into files and prints its table in the terminal."""

import importlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from lsseg.ablation.page import Report, draw_figures, write_latex, write_page
from lsseg.ablation.results import (
    Description,
    Measured,
    Result,
    Row,
    load_description,
    load_results,
    rows_of,
    run_table,
    scores_of,
    variant_table,
    with_classes,
)
from lsseg.errors import InputError
from lsseg.files import write_text
from lsseg.metrics.scores import COSTS, Score

OTHERS = "Further scores, costs and versions"  # the title of the second table


def write_report(folder: Path, console: Console) -> None:
    """Write a suite's table, figures and pages into its folder, and print the table.

    ``report.html`` holds everything. The other files are ``results.md``, ``results.csv``, ``results.tex``,
    ``runs.csv`` and those in ``figures/``.

    Raises:
        InputError: If the folder holds no suite, no run of the suite is finished, or a file is damaged.
    """
    description = load_description(folder)
    results = load_results(folder, description)
    if not results:
        raise InputError(f"{folder}: no run of the suite is finished")
    _import_packages(results, console)
    rows, scores = rows_of(results, description), scores_of(results)
    for name in description.subsets.keys() - {name for row in rows for name in row.subsets}:
        pattern = description.subsets[name]
        console.print(f"subset {name}: no test image has a name like {pattern}", style="red", highlight=False)
    mixed = _mixed(results)
    if mixed:
        console.print(mixed, style="yellow", highlight=False, soft_wrap=True)
    table, runs = variant_table(rows).to_csv(index=False), run_table(results).to_csv(index=False)
    by_class = {f"{s.class_label} by class": _by_class(results, description, s) for s in with_classes(results)}
    report = Report(
        description.name,
        _caption(results, description),
        f"{_note(description)} {mixed}".strip(),
        {**_shown(rows, scores, list(description.subsets)), **by_class},
        draw_figures(folder, results, description, rows),
    )
    write_page(folder / "report.html", report, results, description.labels)
    write_text(folder / "results.md", _markdown(report))
    write_text(folder / "results.csv", table)
    write_text(folder / "runs.csv", runs)
    brief = _brief(report.tables[""], scores)
    title = f"{report.title}: {report.caption}"
    write_latex(folder / "results.tex", brief, title)
    console.print(_rich(brief, title))
    made = f"wrote {folder / 'report.html'}, results.md, results.csv, results.tex, runs.csv and figures/"
    console.print(made, highlight=False)


def _import_packages(results: list[Result], console: Console) -> None:
    """Import the modules of the classes that the runs name, because a user's module may add rows to the scores."""
    files = (result.folder / "config.yaml" for result in results)
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    for module in sorted({path for text in texts for path in re.findall(r"class_path: ([\w.]+)\.\w+", text)}):
        if module.startswith("lsseg."):  # the table of scores is there already
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises, the report can do without it
            said = f"{module} cannot be imported, so scores that it adds are left out: {type(error).__name__}: {error}"
            console.print(said, style="yellow", highlight=False, soft_wrap=True)


def _shown(rows: list[Row], scores: list[Score], subsets: list[str]) -> dict[str, pd.DataFrame]:
    """Return what a reader wants as text: the scores that methods are compared by, and a second table of the others."""
    known = {name for row in rows for name in (*row.all.scores, *row.variant.paper)}
    scores = [score for score in scores if score.name in known]
    compared = [score for score in scores if score.compared]
    last = scores.index(compared[-1]) + 1
    return {
        "": pd.DataFrame([_compared(row, rows, scores[:last], subsets) for row in rows]),
        OTHERS: pd.DataFrame([_others(row, rows, scores[last:]) for row in rows]),
    }


def _compared(row: Row, rows: list[Row], scores: list[Score], subsets: list[str]) -> dict[str, str]:
    """Return the cells of a row by the titles of their columns."""
    main, second = [score for score in scores if score.compared][:2]
    shown = {"method": row.variant.label, **_score(row, main, rows)}
    shown[f"Δ {main.label} [95 %]"] = _interval(row.all, main)
    found = row.all.differences.get(main.name)
    shown[f"Δ {main.label} by seed"] = " ".join(f"{value:+.2f}" for value in found.by_seed) if found else "–"
    shown |= _over_seeds(row, main, rows)
    for name in subsets:
        part = row.subsets.get(name, Measured({}, {}))
        shown[f"{main.label} {name}"] = _spread(part, main, row.seeds)
        shown[f"Δ {name} [95 %]"] = _interval(part, main)
    for score in scores[1:]:
        shown |= _score(row, score, rows)
    shown[f"Δ {second.label} [95 %]"] = _interval(row.all, second)
    return shown | _over_seeds(row, second, rows) | {"seeds": str(row.seeds)}


def _others(row: Row, rows: list[Row], scores: list[Score]) -> dict[str, str]:
    """Return the cells of a row of the second table: scores without a difference, costs, and the row's origin."""
    shown = {"method": row.variant.label}
    for score in scores:
        shown |= _score(row, score, rows)
    for cost in COSTS:
        shown[cost.label] = _number(row.costs.get(cost.name), 1, cost.shown(1))
        if any(cost.name in other.variant.paper for other in rows):
            shown[f"{cost.label} in the paper"] = _number(row.variant.paper.get(cost.name), 0, cost.shown(1))
    shown["parameters"] = f"{row.parameters / 1e6:.2f} M" if row.parameters is not None else "–"
    return shown | {"commit": " ".join(row.commits) or "–"}


def _score(row: Row, score: Score, rows: list[Row]) -> dict[str, str]:
    """Return the cell of a score and, if the suite cites the score in any row, the cell of the paper's score."""
    shown = {score.label: _spread(row.all, score, row.seeds)}
    if any(score.name in other.variant.paper for other in rows):
        shown[f"{score.label} in the paper"] = _number(row.variant.paper.get(score.name), 1)
    return shown


def _over_seeds(row: Row, score: Score, rows: list[Row]) -> dict[str, str]:
    """Return the cell of a difference's interval over seeds; without enough seeds in any row, return no cell."""

    def interval(one: Row) -> tuple[float, float] | None:
        found = one.all.differences.get(score.name)
        return found.over_seeds if found else None

    if not any(interval(one) for one in rows):
        return {}
    own = interval(row)
    return {f"Δ {score.label}, 95 % over seeds": f"[{own[0]:+.2f}, {own[1]:+.2f}]" if own else "–"}


def _caption(results: list[Result], description: Description) -> str:
    planned = sum(len(runs) for runs in description.runs.values())
    missing = f", {planned - len(results)} of {planned} runs are not finished" if planned > len(results) else ""
    steps = sorted({result.summary["step"] for result in results})
    updates = "/".join(map(str, steps))
    images = "/".join(map(str, sorted({len(result.names) for result in results})))
    devices = ", ".join(sorted({result.summary["device"] for result in results}))
    return f"{images} test images, {updates} updates, {devices}{missing}"


def _mixed(results: list[Result]) -> str:
    """Return a warning if different versions of the code made the runs, else an empty text."""
    versions = sorted({result.version for result in results})
    if len(versions) < 2:
        return ""
    return (
        f"Warning: {len(versions)} versions of the code ({', '.join(versions)}) made these runs, so differences "
        "between rows can come from the code. Delete the older runs and run them again."
    )


def _note(description: Description) -> str:
    """Return a text that explains the scores and differences."""
    labels, main = description.labels, description.baseline
    of: dict[str, list[str]] = {}
    for row in description.variants:
        if row.baseline is not None and row.baseline not in (main, row.name):
            of.setdefault(row.baseline, []).append(f"“{row.label}”")
    others = "".join(f", of {', '.join(rows)} to “{labels[name]}”" for name, rows in of.items())
    return (
        "Scores are in percent: the mean ± the standard deviation over seeds. Δ is the paired difference to "
        f"“{labels[main]}”"
        f"{others} in percentage points over the seeds that both have, with a bootstrap 95 % interval over the test "
        "images. The differences by seed and, for at least three seeds, a 95 % interval of their mean (Student's t) "
        "show how much other seeds could change it. Trust a gain only if both intervals exclude zero. Training times "
        "depend on this machine and on what else ran on it."
    )


def _markdown(report: Report) -> str:
    lines = [f"# {report.title}", "", f"{report.caption}."]
    for title, table in report.tables.items():
        lines += ["", *([f"## {title}", ""] if title else []), *_rows(table)]
        lines += [] if title else ["", report.note]
    lines.append("")
    for path in report.figures:
        lines += [f"![{path.stem}](figures/{path.name})", ""]
    return "\n".join(lines)


def _by_class(results: list[Result], description: Description, score: Score) -> pd.DataFrame:
    classes = results[0].summary["classes"]
    rows = []
    for variant in description.variants:
        own = [result.summary["scores"] for result in results if result.variant == variant.name]
        values = {name: [100 * scores.get(f"{score.classes}/{name}", np.nan) for scores in own] for name in classes}
        row = {name: _number(float(np.nanmean(v)) if np.isfinite(v).any() else None, 1) for name, v in values.items()}
        if own or not variant.cite:
            rows.append({"method": variant.label, **row})
        paper = {name: variant.paper.get(f"{score.classes}/{name}") for name in classes}
        if any(number is not None for number in paper.values()):
            rows.append({"method": f"{variant.label}, in the paper", **{n: _number(x, 1) for n, x in paper.items()}})
    return pd.DataFrame(rows)


def _rows(table: pd.DataFrame) -> list[str]:
    head = list(table.columns)
    ruler = ["---", *["---:"] * (len(head) - 1)]
    rows = [[str(cell).replace("|", r"\|") for cell in row] for row in [head, ruler, *table.to_numpy().tolist()]]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _brief(shown: pd.DataFrame, scores: list[Score]) -> pd.DataFrame:
    """Return the columns that fit into 80 characters or onto a page; the HTML and Markdown files have all columns."""
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


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "–" if value is None else f"{factor * value:.{digits}f}"


def _spread(part: Measured, score: Score, seeds: int) -> str:
    found = part.scores.get(score.name)
    if found is None or not found.seeds:
        return "–"
    text = f"{found.mean:.2f} ± {found.deviation:.2f}" if found.seeds > 1 else f"{found.mean:.2f}"
    return f"{text} ({found.seeds} of {seeds} seeds)" if found.seeds < seeds else text


def _interval(part: Measured, score: Score) -> str:
    found = part.differences.get(score.name)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if found and np.isfinite(found.mean) else "–"
