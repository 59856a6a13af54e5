"""The papers' figures from finished runs, on whatever data they were tested on.

python experiments/figures.py pictures RUN RUN … [--out FILE]     image, every run's prediction, truth
python experiments/figures.py maps RUN RUN … --class NAME         a class's level-set function and its zero contour
python experiments/figures.py curves RUN RUN …                    losses and validation score while training
python experiments/figures.py steps RUN                           a refining network's predictions, step by step

pictures: Kim 2019, figures 6 and 7; Zhang 2019, figures 4, 5, 6 and 8; Homayounfar 2020, figures 2 and 3. Every tested
run leaves its pictures in panels/ (key panels.images). maps: Kim 2019, figure 3. curves: Kim 2019, figure 4. steps:
Zhang 2019, figure 7; of any image by
lsseg predict --config RUN/config.yaml --ckpt_path RUN/last.ckpt --data.images IMAGE --predictions.steps true
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lsseg.errors import InputError
from lsseg.files import read_jsonl


def main() -> None:
    """Draw one figure."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["pictures", "maps", "curves", "steps"])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--class", dest="name", help="maps: the class")
    parser.add_argument("--images", type=int, default=3, help="how many of the first test images (default: 3)")
    parser.add_argument("--out", type=Path, help="file to write (default: KIND.png)")
    options = parser.parse_args()
    path = options.out or Path(f"{options.kind}.png")
    if not path.parent.is_dir() or path.suffix not in (".png", ".pdf", ".svg"):
        sys.exit(f"--out {path}: give a .png, .pdf or .svg in a folder that exists")
    if options.images < 1:
        sys.exit(f"--images must be at least 1, not {options.images}")
    for run in options.runs:
        if not run.is_dir():
            sys.exit(f"{run} is not a folder")
    try:
        if options.kind == "maps":
            figure = maps(options.runs, options.name, options.images)
        elif options.kind == "curves":
            figure = curves(options.runs)
        else:
            figure = {"pictures": pictures, "steps": steps}[options.kind](options.runs, options.images)
    except InputError as error:
        sys.exit(f"figures.py: {error}")
    figure.savefig(path)
    print(path)


def pictures(runs: list[Path], count: int) -> Figure:
    """Rows of test images; image, predictions, truth."""
    shown = [{path.name for path in (run / "panels").glob("plain-*-prediction.png")} for run in runs]
    common = sorted(set.intersection(*shown))[:count]
    if not common:
        raise InputError(
            "the runs have no tested image in common: their folders panels/ lack plain-NAME-prediction.png"
        )
    rows = []
    for name in common:
        first = runs[0] / "panels" / name
        files = [first.with_name(name.replace("-prediction.png", "-image.png"))]
        files += [run / "panels" / name for run in runs]
        files += [first.with_name(name.replace("-prediction.png", "-truth.png"))]
        rows.append([np.asarray(Image.open(file)) for file in files])
    return grid(rows, ["image", *(label(run) for run in runs), "truth"])


def maps(runs: list[Path], name: str | None, count: int) -> Figure:
    """Rows of test images that show a class; image, its level-set function by every run, truth."""
    from lsseg.load import load_run  # only now: the other figures need no network

    loaded = [load_run(run) for run in runs]
    data = loaded[0].data
    for run, (_, other) in zip(runs, loaded, strict=True):
        if other.kind != "semantic":
            raise InputError(f"maps need label maps; the φ of {run} are in its panels/test-NAME-evolution.png")
        if other.class_names != data.class_names:
            raise InputError(f"{run} has other classes than {runs[0]}")
    if name not in data.class_names:
        raise InputError(f"--class must be one of {', '.join(data.class_names)}, not {name}")
    chosen = data.class_names.index(name)
    samples = data.samples(data.source(data.test_split), training=False)
    rows: list[list[Any]] = []
    for index in range(len(samples)):
        sample = samples[index]
        truth = (sample["mask"] == chosen).numpy()
        if truth.mean() < 0.01 or len(rows) == count:
            continue
        with torch.no_grad():
            phi = [run.task.phi(run.task.infer(sample["image"][None]))[0, chosen].numpy() for run in loaded]
        rows.append([sample["image"].permute(1, 2, 0).numpy(), *phi, truth])
    if not rows:
        raise InputError(f"no test image has one percent of {name}")
    return grid(rows, ["image", *(label(run) for run in runs), f"truth: {name}"])


def curves(runs: list[Path]) -> Figure:
    """One panel for each curve that the runs have."""
    logs = {run: read_jsonl(run / "metrics.jsonl") for run in runs}
    keys = ["train/cross_entropy", "train/level_set", "train/loss", "val/miou", "val/mask_ap"]
    known = [key for key in keys if any(key in row for rows in logs.values() for row in rows)]
    if "train/level_set" in known:
        known.remove("train/loss")
    if not known:
        raise InputError("the runs have no metrics.jsonl with a loss or a score")
    figure = Figure(figsize=(4.2 * len(known), 3.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for axis, key in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        for number, (run, rows) in enumerate(logs.items()):
            plain = key == "train/cross_entropy" and not any(key in row for row in rows)  # it is all of the loss
            own = "train/loss" if plain else key
            points = np.array([(row["step"], row[own]) for row in rows if own in row]).reshape(-1, 2)
            axis.plot(*points.T, color=f"C{number}", label=label(run), marker="." if len(points) < 20 else None)
        axis.set_title(key)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


def steps(runs: list[Path], count: int) -> Figure:
    """The panels of steps that the test has left, one below the other."""
    rows = []
    for run in runs:
        panels = sorted((run / "panels").glob("test-*-steps.png"))[:count]
        if not panels:
            raise InputError(f"{run} has no panels/test-NAME-steps.png: its network does not refine, or was not tested")
        rows += [np.asarray(Image.open(panel)) for panel in panels]
    figure = Figure(figsize=(16, sum(16 * row.shape[0] / row.shape[1] for row in rows)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for axis, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axis.imshow(row)
        axis.set_axis_off()
    return figure


def grid(rows: list[list[Any]], titles: list[str]) -> Figure:
    """Pictures in rows; floats with negative values are level-set functions, drawn with their zero contour."""
    height, width = rows[0][0].shape[:2]
    figure = Figure(
        figsize=(2.6 * len(titles), (2.6 * height / width + 0.1) * len(rows) + 0.3), layout="constrained", dpi=120
    )
    FigureCanvasAgg(figure)
    for number, (axes, row) in enumerate(
        zip(figure.subplots(len(rows), len(titles), squeeze=False), rows, strict=True)
    ):
        for axis, picture, title in zip(axes, row, titles, strict=True):
            if picture.ndim == 2 and picture.dtype != bool:
                reach = float(np.abs(picture).max()) or 1.0
                axis.imshow(picture, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
                axis.contour(picture, [0.0], colors="black", linewidths=0.8)
            else:
                axis.imshow(picture, interpolation="nearest", cmap="gray")
            axis.set_axis_off()
            if number == 0:
                axis.set_title(title, fontsize=9)
    return figure


def label(run: Path) -> str:
    """What to call a run: its folder's name without the seed."""
    return run.resolve().name.rpartition("-seed")[0] or run.resolve().name


if __name__ == "__main__":
    main()
