"""Writes the tables of the experiments below the notes of each folder's README.md: what was run, is ready, or is cited.

python experiments/overview.py

Results are read from results/NAME.csv beside the suites, where NAME is that of the folder that `lsseg ablate` wrote its
results.csv into: the suite's, and those of the configurations on top of it.
"""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from lsseg.ablation.spec import load_suite
from lsseg.metrics.scores import COSTS, SCORES

HERE = Path(__file__).parent
MARK = "<!-- What follows is written by `python experiments/overview.py`. -->"


class Drawn(NamedTuple):
    """A figure by figures.py: its kind, the runs below runs/ at the paper's size and at the small one, and options."""

    kind: str
    runs: str
    small: str
    options: str = ""


# What a paper shows, and the suites, or what else makes it.
SHOWN: dict[str, dict[str, str | Drawn]] = {
    "kim2019": {
        "Table 1 (networks, VOC)": "table1.yaml",
        "Table 2 (PASCAL-Context)": "table2.yaml",
        "Table 3 (Cityscapes)": "table3.yaml",
        "Table 4 (running time against CRFs)": "table4.yaml",
        "Table 5 (losses)": "table5.yaml",
        "Figure 5 (Heaviside functions)": "figure5.yaml",
        "Figure 5 (curves)": Drawn(
            "curves",
            "kim2019-figure5/{cross_entropy,hf,ahf_20,ahf,mahf}-seed0",
            "kim2019-figure5-small/{cross_entropy,hf,ahf_20,ahf,mahf}-seed0",
        ),
        "Section 4.7 (ε and λ)": "epsilon_lambda.yaml",
        "Section 4.3 (time of the loss)": "timing.yaml",
        "Figure 3 (level-set functions)": Drawn(
            "maps",
            "kim2019-table1/{fcn32s,fcn32s_ls}-seed0",
            "kim2019-table1-small/{fcn32s,fcn32s_ls}-seed0",
            "--class car",
        ),
        "Figure 4 (losses while training)": "figure4.yaml",
        "Figure 4 (curves)": Drawn(
            "curves",
            "kim2019-figure4/{cross_entropy,level_set}-seed0",
            "kim2019-figure4-small/{cross_entropy,level_set}-seed0",
        ),
        "Figure 6 (pictures)": Drawn(
            "pictures",
            "kim2019-table1/{fcn32s,fcn8s,fcn32s_ls}-seed0",
            "kim2019-table1-small/{fcn32s,fcn8s,fcn32s_ls}-seed0",
        ),
        "Figure 7 (pictures)": Drawn(
            "pictures",
            "kim2019-table1/{deeplab_v2,deeplab_v2_crf,deeplab_v2_ls}-seed0",
            "kim2019-table1-small/{deeplab_v2,deeplab_v2_crf,deeplab_v2_ls}-seed0",
        ),
    },
    "zhang2019": {
        "Table I (Cityscapes)": "table1.yaml",
        "Table II (Cityscapes by class)": "table2.yaml",
        "Table III (Mapillary Vistas)": "table3.yaml",
        "Table IV (ADE20K)": "table4.yaml",
        "Table V (ADE20K, test server)": "table5.yaml",
        "Table VI (parts)": "table6.yaml",
        "Table VII (steps)": "table7.yaml",
        "Batch-norm of the steps": "batch_norm.yaml",
        "The rate as printed": "recipe.yaml",
        "Table VIII (speed)": "table8.csv",
        "Figure 4 (pictures, Cityscapes)": Drawn(
            "pictures",
            "zhang2019-table1/{fcn8s_resnet50,dmls_resnet101}-seed0",
            "zhang2019-table6-small/{fcn8s,all}-seed0",
        ),
        "Figure 5 (pictures, ADE20K)": Drawn(
            "pictures",
            "zhang2019-table4/{fcn8s_resnet101,dmls_resnet101}-seed0",
            "zhang2019-table6-small/{dfcn,all}-seed0",
        ),
        "Figure 6 (level sets)": Drawn(
            "pictures", "zhang2019-table6/{mls,fcn8s}-seed0", "zhang2019-table6-small/{mls,fcn8s}-seed0"
        ),
        "Figure 7 (steps)": Drawn(
            "steps", "zhang2019-table6/all-seed0", "zhang2019-table6-small/all-seed0", "--images 1"
        ),
        "Figure 8 (deep supervision)": Drawn(
            "pictures",
            "zhang2019-table6/{rfcn,rfcn_wce,rfcn_dsl,rfcn_dsl_wce,all}-seed0",
            "zhang2019-table6-small/{rfcn,rfcn_wce,rfcn_dsl,rfcn_dsl_wce,all}-seed0",
        ),
    },
    "homayounfar2020": {
        "Table 1 (Cityscapes test)": "table1.yaml",
        "Table 2 (initial and final mask)": "table2.yaml",
        "Table 2 on Cityscapes": "table2_cityscapes.yaml",
        "Table 2 on LVIS": "table2_lvis.yaml",
        "Table 3 (rivals)": "table3.yaml",
        "Table 4 (φ⁰ detached)": "table4.yaml",
        "Table 5 (contours)": "table5.yaml",
        "Hyperparameter head": "hyperparameters.yaml",
        "Resolution": "resolution.yaml",
        "Inference time": "time.csv",
        "Figure 2 (pictures, Cityscapes)": Drawn(
            "pictures",
            "homayounfar2020-table2-cityscapes/{mask_rcnn,level_set_rcnn}-seed0",
            "homayounfar2020-table2-small-pennfudan/{mask_rcnn,level_set_rcnn}-seed0",
        ),
        "Figure 3 (pictures, COCO)": Drawn(
            "pictures",
            "homayounfar2020-table2/level_set_rcnn-seed0",
            "homayounfar2020-table2-small-nuclei/level_set_rcnn-seed0",
        ),
    },
}
# What a table shows of many scores: the first three that it has.
FIRST = ("miou", "boundary_f1_1px", "accuracy", "official_iiou", "official_category_miou", "official_category_iiou")
FIRST += ("mask_ap", "initial_mask_ap", "official_ap", "official_ap50", "af1", "af2")
LABELS = {score.name: score.label for score in (*SCORES, *COSTS)}
MAIN = ("miou", "boundary_f1_1px")  # of the comparison; below them:
FURTHER = ("boundary_f1_2px", "boundary_f1_3px", "accuracy")
FURTHER += ("initial_miou", "initial_boundary_f1_1px", "changed_pixels")
MS = {cost.name for cost in COSTS if cost.unit == "ms"}
UNITS = {"fps": "fps", "gflops": "GFLOPs", "parameters": "parameters (M)", "ms": "ms an image"}
DIFFERENCE = "_difference"

OVERLAYS = ("small", "small-pennfudan", "small-nuclei", "small-car_parts")  # what stands behind a suite's name
COMPARED = {"CamVid": "camvid-lite", "Car parts as semantic classes": "car_parts-lite", "Nuclei": "nuclei-lite"}
LEGEND = """\
Percent, mean ± standard deviation over seeds where there are several. Δ is the paired difference to the row's baseline,
with a 95 % interval over the test images, which says nothing of other seeds, and from three seeds on a second one over
seeds.
"""


def main() -> None:
    """Write the pages."""
    for name in (*SHOWN, "compare"):
        (HERE / name / "README.md").write_text(page(name))


def page(name: str) -> str:
    """A folder's page: its notes as they are, and its tables."""
    notes = (HERE / name / "README.md").read_text().partition(MARK)[0].rstrip()
    tables = _stages() if name == "compare" else _paper(name)
    if not tables:
        return notes + "\n"
    return "\n".join([notes, "", MARK, "", "## Tables and figures", "", LEGEND, *tables]).rstrip() + "\n"


def _paper(paper: str) -> list[str]:
    lines: list[str] = []
    for name, made_by in SHOWN[paper].items():
        if isinstance(made_by, Drawn):
            lines += _picture(name, made_by)
        elif made_by.endswith(".yaml"):
            lines += _suite(name, HERE / paper / made_by)
        else:
            lines += _speed(name, HERE / paper / made_by)
    return lines


def _stages() -> list[str]:
    lines: list[str] = []
    for data, name in COMPARED.items():
        for stage, equal in {"updates": "numbers of updates", "time": "training time"}.items():
            path = HERE / "compare" / f"{name}-{stage}.yaml"
            if (HERE / "compare" / "results" / f"compare-{path.stem}.csv").is_file():
                lines += _compared(f"{data}, equal {equal}", path)
    return lines


def _compared(title: str, path: Path) -> list[str]:
    """One stage of the comparison: what every method was trained with, and its scores, in two tables."""
    suite = yaml.safe_load(path.read_text())
    found = _read(HERE / "compare" / "results" / f"{suite['name']}.csv")
    results = {name: row for name, row in found.items() if int(row["seeds"])}
    steps = yaml.safe_load((path.parent / suite["base"][-1]).read_text())["trainer"]["max_steps"]
    rows = [row for row in suite["variants"] if row["name"] in results]
    most = max(int(row["seeds"]) for row in results.values())
    for row in rows:  # a mean over fewer seeds must not look like the others
        if (seeds := int(results[row["name"]]["seeds"])) < most:
            row["label"] += f" ({seeds} of {most} seeds)"
    absent = [row["label"] for row in suite["variants"] if row["name"] not in results]
    about = [f"[{path.name}]({path.name})", _seeds("trained", results)]
    about += [f"commit {', '.join(sorted({row['commit'] for row in results.values()}))}"]
    about += [f"not run yet: {'; '.join(absent)}"] if absent else []
    head = ["", "rate", "updates"]
    for score in MAIN:
        head += [LABELS[score], f"Δ {LABELS[score]} [95 % over images] [over seeds]", "Δ by seed"]
    lines = [f"### {title}", "", ". ".join(about), "", *_head(head)]
    for row in rows:
        cells = [row["label"], f"{row['set']['model.lr']:g}", f"{row['set'].get('trainer.max_steps', steps)}"]
        for score in MAIN:
            kinds = (score, f"{score}{DIFFERENCE}", f"{score}{DIFFERENCE}_by_seed")
            own, difference, by_seed = (_cell(results[row["name"]], kind) for kind in kinds)
            cells += [own, difference, by_seed.replace(" ", ", ")]
        lines.append(f"| {' | '.join(cells)} |")
    costs = _costs(HERE / "compare" / "results" / f"{suite['name']}-clock.csv")
    lines += [
        "",
        *_head(["", *(LABELS[score] for score in FURTHER), *(["time of an update", "peak MB"] if costs else [])]),
    ]
    for row in rows:
        cells = [row["label"], *(_cell(results[row["name"]], score) for score in FURTHER), *costs.get(row["name"], [])]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _costs(path: Path) -> dict[str, list[str]]:
    """The time of an update, as a multiple of the first row's, and the peak memory; from short runs timed alone."""
    found = {name: row for name, row in _read(path).items() if int(row["seeds"])} if path.is_file() else {}
    seconds = {name: float(row["train_seconds_per_image"]) for name, row in found.items()}
    first = next(iter(seconds.values()), 1.0)
    return {
        name: [f"{seconds[name] / first:.2f}×", f"{float(found[name]['train_peak_bytes']) / 1e6:.0f}"] for name in found
    }


def _head(columns: list[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]


def _suite(name: str, path: Path) -> list[str]:
    suite = load_suite(path)
    files = [path.parent / "results" / f"{suite.name}{end}.csv" for end in ("", *(f"-{config}" for config in OVERLAYS))]
    results = {
        file.stem.removeprefix(suite.name).lstrip("-") or "as it is": _read(file) for file in files if file.is_file()
    }
    titles = dict(LABELS)
    cited = dict.fromkeys(score for row in suite.variants for score in row.paper)
    titles |= {score: score.partition("/")[2] for score in cited if "/" in score}  # of a class
    scores = [score for score in titles if score in cited]
    costs = [score for score in scores if score in MS]
    shown = {where: _columns(rows, costs, len(scores)) for where, rows in results.items()}
    head = ["", *(f"paper: {titles[s]}" for s in scores)]
    head += [f"{where}: {_title(s)}" for where in results for s in shown[where]]
    link = f"[{path.name}]({path.name})"
    lines = [f"### {name}", "", ". ".join([link, *(_seeds(*item) for item in results.items())]), ""]
    lines += [f"| {' | '.join([*head, 'here'])} |", f"|{' --- |' * (len(head) + 1)}"]
    for row in suite.variants:
        cells = [row.label, *(_number(row.paper, s) for s in scores)]
        ran = False
        for where, rows in results.items():
            own = rows.get(row.name, {})
            cells += [_cell(own, s) for s in shown[where]]
            ran |= any(own.get(s) for s in shown[where])
        lines.append(f"| {' | '.join([*cells, 'citation' if row.cite else 'run' if ran else 'ready to run'])} |")
    return [*lines, ""]


def _seeds(where: str, rows: dict[str, dict[str, str]]) -> str:
    """How many trainings a row's numbers come from."""
    counts = sorted({int(row["seeds"]) for row in rows.values() if row.get("seeds")} - {0})
    return f"{where}: {' or '.join(map(str, counts))} seed{'s' if counts != [1] else ''}" if counts else where


def _speed(name: str, path: Path) -> list[str]:
    """A table of costs: the paper's numbers, and beside them what `lsseg bench` has written as JSON."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    columns = {column: UNITS[column] for column in rows[0] if column in UNITS}
    here = json.loads((path.parent / "results" / f"{path.stem}.json").read_text())
    head = ["", *(f"paper: {c}" for c in columns.values()), *(f"here: {c}" for c in columns.values()), "here"]
    lines = [f"### {name}", "", f"`{here['command']}`, here on {here['device']}.", ""]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        own = here["costs"].get(row["name"], {})
        cells = [row["label"], *(row[c] for c in columns), *(f"{own[c]:.4g}" if c in own else "" for c in columns)]
        lines.append(f"| {' | '.join([*cells, 'run' if own else 'citation'])} |")
    return [*lines, ""]


def _picture(name: str, drawn: Drawn) -> list[str]:
    """A figure's command, and the figure itself at the small size."""
    file = "figure" + re.findall(r"\d+", name)[0] + ".png"
    command = f"`python experiments/figures.py {drawn.kind} runs/{drawn.runs}{drawn.options and ' '}{drawn.options}"
    lines = [f"### {name}", "", f"{command} --out {file}`; here of `runs/{drawn.small}`:", ""]
    return [*lines, f"![{name}]({file})", ""]


def _columns(rows: dict[str, dict[str, str]], costs: list[str], cited: int) -> list[str]:
    """What is shown of a table of results: three scores, the difference of the first to the baseline, costs."""
    if costs and len(costs) == cited:
        return costs
    first, *others = [score for score in FIRST if any(row.get(score) for row in rows.values())][:3]
    difference = [f"{first}{DIFFERENCE}"] if any(row.get(f"{first}{DIFFERENCE}") for row in rows.values()) else []
    return [first, *difference, *others, *costs]


def _title(column: str) -> str:
    if column.endswith(DIFFERENCE):
        return f"Δ {LABELS[column.removesuffix(DIFFERENCE)]}"
    return LABELS[column]


def _read(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["variant"]: row for row in csv.DictReader(file)}


def _number(row: Mapping[str, float], score: str) -> str:
    if score not in row:
        return ""
    return f"{1000 * row[score]:g}" if score in MS else str(row[score])


def _cell(row: dict[str, str], score: str) -> str:
    """A score with its spread over seeds, a difference with its intervals over images and over seeds, or a cost."""
    if not row.get(score):
        return ""
    if score in MS:
        return f"{1000 * float(row[score]):.1f}"
    if score.endswith("_by_seed"):
        return row[score]
    if score.endswith(DIFFERENCE):
        ends = [[row.get(f"{score}{kind}_{end}") for end in ("low", "high")] for kind in ("", "_seeds")]
        intervals = (f"[{float(low):+.2f}, {float(high):+.2f}]" for low, high in ends if low and high)
        return " ".join([f"{float(row[score]):+.2f}", *intervals])
    spread = row.get(f"{score}_std")
    return f"{float(row[score]):.2f}" + (f" ± {float(spread):.2f}" if spread else "")


if __name__ == "__main__":
    main()
