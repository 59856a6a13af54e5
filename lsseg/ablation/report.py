"""A suite's table, in a terminal and on disk, and its figures."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from lsseg.ablation.figures import draw_figures
from lsseg.ablation.results import (
    BOUNDARY_SCORES,
    Result,
    load_description,
    load_results,
    run_table,
    variant_table,
)
from lsseg.errors import InputError
from lsseg.files import write_text


def write_report(folder: Path, console: Console) -> None:
    """Write ``results.csv``, ``runs.csv``, ``results.md`` and ``figures/`` into a suite's folder; print the table.

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
    shown = _shown(table, description)
    figures = draw_figures(folder, results, description)
    write_text(folder / "results.md", _markdown(shown, results, description, figures))
    console.print(_rich(shown, f"{description['name']}: {_caption(results, description)}"))
    console.print(f"report: {folder / 'results.md'}, results.csv, runs.csv, figures/", highlight=False)


def _shown(table: pd.DataFrame, description: dict[str, Any]) -> pd.DataFrame:
    """The columns a reader wants, as text."""
    rows = []
    records: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    for row in records:
        shown = {"method": row["label"], "mIoU": _spread(row, "miou")}
        if "paper_miou" in table:
            shown["mIoU in the paper"] = _number(row["paper_miou"], 1)
        shown["Δ mIoU [95 %]"] = _interval(row, "miou_difference")
        by_seed = row.get("miou_difference_by_seed")
        shown["Δ mIoU by seed"] = by_seed if isinstance(by_seed, str) else "–"
        for name in description["subsets"]:
            shown[f"mIoU {name}"] = _spread(row, f"{name}_miou")
            shown[f"Δ {name} [95 %]"] = _interval(row, f"{name}_miou_difference")
        for score in BOUNDARY_SCORES:
            shown[f"boundary F {score[-3:]}"] = _spread(row, score)
        shown["Δ boundary F 1px [95 %]"] = _interval(row, "boundary_f1_1px_difference")
        shown["accuracy"] = _spread(row, "accuracy")
        if "paper_accuracy" in table:
            shown["accuracy in the paper"] = _number(row["paper_accuracy"], 1)
        shown["train ms/image"] = _number(_times(row.get("train_seconds_per_image"), 1e3), 1)
        shown["test ms/image"] = _number(_times(row.get("test_seconds_per_image"), 1e3), 1)
        shown["parameters"] = f"{row['parameters'] / 1e6:.2f} M" if _given(row.get("parameters")) else "–"
        shown["seeds"] = str(row["seeds"])
        rows.append(shown)
    return pd.DataFrame(rows)


def _caption(results: list[Result], description: dict[str, Any]) -> str:
    planned = sum(len(runs) for runs in description["runs"].values())
    missing = f", {planned - len(results)} of {planned} runs missing" if planned > len(results) else ""
    steps = sorted({result.summary["step"] for result in results})
    updates = "/".join(map(str, steps))
    images = "/".join(map(str, sorted({len(result.names) for result in results})))
    devices = ", ".join(sorted({result.summary["device"] for result in results}))
    return f"{images} test images, {updates} updates, {devices}{missing}"


def _markdown(shown: pd.DataFrame, results: list[Result], description: dict[str, Any], figures: list[Path]) -> str:
    base = next(v["label"] for v in description["variants"] if v["name"] == description["baseline"])
    lines = [f"# {description['name']}", "", _caption(results, description) + ".", "", *_rows(shown), ""]
    lines += [
        "Scores in percent, mean ± standard deviation over seeds. Δ is the paired difference to "
        f"{base.lower()} in percentage points over the seeds that both have, with a bootstrap 95 % interval over the "
        "test images; how far other seeds would move it, the differences by seed tell.",
        "",
        "## IoU by class",
        "",
        *_rows(_by_class(results, description, "iou")),
        "",
        "## Boundary F at 1 px by class",
        "",
        *_rows(_by_class(results, description, "boundary_f1_1px")),
        "",
    ]
    for path in figures:
        lines += [f"![{path.stem}](figures/{path.name})", ""]
    return "\n".join(lines)


def _by_class(results: list[Result], description: dict[str, Any], score: str) -> pd.DataFrame:
    classes = results[0].summary["classes"]
    rows = []
    for variant in description["variants"]:
        own = [result.summary["scores"] for result in results if result.variant == variant["name"]]
        values = {name: [100 * scores.get(f"{score}/{name}", np.nan) for scores in own] for name in classes}
        row = {name: _number(float(np.nanmean(v)) if np.isfinite(v).any() else None, 1) for name, v in values.items()}
        rows.append({"method": variant["label"], **row})
    return pd.DataFrame(rows)


def _rows(table: pd.DataFrame) -> list[str]:
    head = list(table.columns)
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(map(str, row)) + " |" for row in [head, ruler, *table.to_numpy().tolist()]]


def _rich(shown: pd.DataFrame, title: str) -> Table:
    """The columns that fit into 80 characters; the files have them all."""
    main = [
        name for name in shown.columns if re.match(r"method|mIoU( in the paper)?$|Δ mIoU \[|.*boundary F 1px", name)
    ]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in main:
        left = name == "method"
        header = name.replace(" [", "\n[").replace("boundary F ", "boundary F\n").replace(" in the", "\nin the")
        table.add_column(header, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in shown[main].to_numpy().tolist():
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
    spread = row.get(f"{score}_std")
    return f"{row[score]:.2f} ± {spread:.2f}" if spread is not None and _given(spread) else f"{row[score]:.2f}"


def _interval(row: dict[str, Any], name: str) -> str:

    if not _given(row.get(name)):
        return "–"
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"
