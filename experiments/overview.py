"""Writes experiments/README.md: every table and figure of the papers, what of it is run, ready to run, or cited.

python experiments/overview.py

Results are read from results/NAME.csv beside the suites, where NAME is that of the folder that `lsseg ablate` wrote its
results.csv into: the suite's, and those of the configurations on top of it.
"""

import csv
from pathlib import Path

import yaml

HERE = Path(__file__).parent
PAPERS = {
    "kim2019": "Kim et al. 2019, CNN-based Semantic Segmentation using Level Set Loss",
    "zhang2019": "Zhang et al. 2019, Deep Multiphase Level Set for Scene Parsing",
    "homayounfar2020": "Homayounfar et al. 2020, LevelSet R-CNN: A Deep Variational Method for Instance Segmentation",
}
# What a paper shows, and the suite (or what else makes it); None is not there yet.
SHOWN = {
    "kim2019": {
        "Table 1 (networks, VOC)": "table1.yaml",
        "Table 2 (PASCAL-Context)": None,
        "Table 3 (Cityscapes)": None,
        "Table 4 (running time against CRFs)": "table4.yaml",
        "Table 5 (losses)": "table5.yaml",
        "Figure 5 (Heaviside functions)": "figure5.yaml",
        "Section 4.7 (ε and λ)": "epsilon_lambda.yaml",
        "Section 4.3 (time of the loss)": "`lsseg bench losses`",
        "Figures 3, 4, 6, 7": None,
    },
    "zhang2019": {
        "Tables I to V (other methods, four data sets)": None,
        "Table VI (parts)": "table6.yaml",
        "Table VII (steps)": "table7.yaml",
        "Batch-norm of the steps": "batch_norm.yaml",
        "Table VIII (speed)": "`lsseg bench dmls`",
        "Figures 4 to 8": None,
    },
    "homayounfar2020": {
        "Table 1 (Cityscapes test)": None,
        "Table 2 (initial and final mask)": "table2.yaml",
        "Table 3 (rivals)": "table3.yaml",
        "Table 4 (φ⁰ detached)": "table4.yaml",
        "Table 5 (contours)": "table5.yaml",
        "Hyperparameter head": "hyperparameters.yaml",
        "Resolution": "resolution.yaml",
        "Inference time": "`lsseg bench instances`",
        "Figures 2, 3": None,
    },
}
SCORES = {
    "miou": "mIoU",
    "accuracy": "accuracy",
    "mask_ap": "AP",
    "initial_mask_ap": "AP of φ⁰",
    "af1": "AF1",
    "af2": "AF2",
}

HEAD = """\
# The papers' tables and figures

Written by `python experiments/overview.py`. `lsseg ablate experiments/PAPER/SUITE` runs a suite at the paper's size on
one GPU; behind it `--config experiments/PAPER/small.yaml` makes it fit two CPU cores. What was run here was run at that
small size, on small data (Kim and Zhang: CamVid at 120×160, from random weights; Homayounfar: what the column names):
compare the shape with the paper's, not the numbers. Percent, mean ± standard deviation over seeds.

"""


def main() -> None:
    """Write the page."""
    (HERE / "README.md").write_text(page())


def page() -> str:
    """The page's text."""
    lines = HEAD.splitlines()
    for paper, title in PAPERS.items():
        lines += [f"## {title}", ""]
        for name, made_by in SHOWN[paper].items():
            if made_by is not None and made_by.endswith(".yaml"):
                lines += _suite(paper, name, HERE / paper / made_by)
            else:
                lines += [f"### {name}", "", f"{made_by}." if made_by else "Not there yet.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _suite(paper: str, name: str, path: Path) -> list[str]:
    suite = yaml.safe_load(path.read_text())
    found = sorted((HERE / paper / "results").glob(f"{suite['name']}*.csv"))
    results = {file.stem.removeprefix(suite["name"]).lstrip("-") or "as it is": _read(file) for file in found}
    scores = [score for score in SCORES if any(score in row.get("paper", {}) for row in suite["variants"])] or ["miou"]
    shown = {
        where: [s for s in SCORES if any(row.get(s) for row in rows.values())][:3] for where, rows in results.items()
    }
    head = ["", *(f"paper: {SCORES[s]}" for s in scores)]
    head += [f"{where}: {SCORES[s]}" for where in results for s in shown[where]]
    lines = [f"### {name}", "", f"[{paper}/{path.name}]({paper}/{path.name})", ""]
    lines += [f"| {' | '.join([*head, 'here'])} |", f"|{' --- |' * (len(head) + 1)}"]
    for row in suite["variants"]:
        cells = [row.get("label", row["name"]), *(str(row.get("paper", {}).get(s, "")) for s in scores)]
        ran = False
        for where, rows in results.items():
            own = rows.get(row["name"], {})
            cells += [_spread(own, s) for s in shown[where]]
            ran |= any(own.get(s) for s in shown[where])
        lines.append(f"| {' | '.join([*cells, 'citation' if row.get('cite') else 'run' if ran else 'ready to run'])} |")
    return [*lines, ""]


def _read(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def _spread(row: dict[str, str], score: str) -> str:
    if not row.get(score):
        return ""
    spread = row.get(f"{score}_std")
    return f"{float(row[score]):.2f}" + (f" ± {float(spread):.2f}" if spread else "")


if __name__ == "__main__":
    main()
