"""What each likelihood of the multiphase layer does: one figure from a finished DMLS run.

    python experiments/zhang2019/likelihoods.py runs/camvid/dmls-seed0 --image 4 --output likelihoods.png

The network's own scores of the first step on a test image are evolved three times, with the scores themselves, with a
Gaussian of the image's colours and with a Gaussian of the network's features as likelihood (Zhang 2019, eq. 9-10).
Above: labels before and after. Below: the speed F of one class, its contour before (white) and after (yellow).
"""

import argparse
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsseg.callbacks.drawing import colorize, hardest_class, overlay
from lsseg.functional import (
    class_iou,
    competition,
    confusion_matrix,
    gaussian_log_posterior,
    largest_class,
    multiphase_evolve,
    overlap_counts,
    partition_level_sets,
    regions,
)
from lsseg.models.multiphase import enlarged

LABELS = {"confidence": "the scores", "colour": "Gaussian of colours", "features": "Gaussian of features"}


def build(spec: Any) -> Any:
    """What a configuration describes: a class path with its arguments, as a function of the missing ones."""
    if not (isinstance(spec, dict) and "class_path" in spec):
        return spec
    module, _, name = spec["class_path"].rpartition(".")
    arguments = {key: build(value) for key, value in (spec.get("init_args") or {}).items()}
    return partial(getattr(importlib.import_module(module), name), **arguments)


def load(run: Path) -> tuple[Any, Any]:
    """The trained network of a run and its data."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    data = build(config["data"])()
    network = build(config["model"]["init_args"]["network"])(data.num_classes)
    state = torch.load(run / "last.ckpt", weights_only=False)["state_dict"]
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    return network.eval(), data


def evolved(network: Any, image: torch.Tensor, time: float) -> tuple[torch.Tensor, dict[str, tuple[Any, Any]]]:
    """Scores of the first step, and for each likelihood the speed F and φ after a time."""
    output = network.network(image)
    log_scores = torch.log_softmax(output.logits, 1)
    scores = log_scores.exp()
    region = regions(largest_class(scores), scores.shape[1])
    phi = partition_level_sets(scores, region)
    features = enlarged(output.features, output.feature_stride, scores)
    likelihoods = {
        "confidence": log_scores,
        "colour": gaussian_log_posterior(image, scores, region),
        "features": gaussian_log_posterior(features, scores, region),
    }
    results = {}
    for name, log_f in likelihoods.items():
        results[name] = (competition(log_f), multiphase_evolve(phi, log_f, steps=round(time / 0.5)))
    return scores, results


def miou(labels: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    """Mean IoU of one image, in percent."""
    return 100 * float(class_iou(overlap_counts(confusion_matrix(labels[None], truth[None], classes))).nanmean())


def draw(network: Any, data: Any, index: int, time: float, shown: int | None) -> Figure:
    """The figure for one test image."""
    sample = data.test_dataloader().dataset[index]
    image, truth = sample["image"], sample["mask"]
    with torch.no_grad():
        scores, results = evolved(network, image[None], time)
    before = scores.argmax(1)
    number = shown if shown is not None else hardest_class(truth.numpy(), before[0].numpy(), data.num_classes)
    pixels = image.permute(1, 2, 0).numpy()
    height, width = truth.shape
    figure = Figure(figsize=(17, 6.8 * height / width + 1.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 5)
    axes[0, 0].imshow(pixels)
    axes[0, 0].set_title(f"image ({sample['name']})", fontsize=9)
    axes[1, 0].imshow(colorize(truth.numpy(), data.palette), interpolation="nearest")
    axes[1, 0].set_title("truth", fontsize=9)
    titles = {"before": f"before, mIoU {miou(before[0], truth, data.num_classes):.1f}"}
    labels = {"before": before[0]}
    for name, (_, phi) in results.items():
        labels[name] = phi.argmax(1)[0]
        changed = 100 * float((labels[name] != before[0]).float().mean())
        titles[name] = (
            f"{LABELS[name]}, mIoU {miou(labels[name], truth, data.num_classes):.1f}, {changed:.1f} % changed"
        )
    for column, (name, one) in enumerate(labels.items(), start=1):
        axes[0, column].imshow(overlay(pixels, one.numpy(), data.palette, 0.7), interpolation="nearest")
        axes[0, column].set_title(titles[name], fontsize=9)
    axes[1, 1].imshow(scores[0, number].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes[1, 1].set_title(f"score of {data.class_names[number]}", fontsize=9)
    for column, (name, (speed, _)) in enumerate(results.items(), start=2):
        axis = axes[1, column]
        axis.imshow(speed[0, number].numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        for one, color in ((before[0], "white"), (labels[name], "yellow")):
            inside = (one == number).numpy()
            if 0 < inside.sum() < inside.size:
                axis.contour(inside, levels=[0.5], colors=color, linewidths=1.0)
        axis.set_title(f"F of {data.class_names[number]}, contour before and after", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(f"Evolution of the first step's scores for a time of {time:g} under three likelihoods", fontsize=10)
    return figure


def main() -> None:
    """Draw the figure, and print what the evolution does to the scores of the whole test split."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished DMLS run")
    parser.add_argument("--image", type=int, default=0, help="which test image (default: 0)")
    parser.add_argument("--class", dest="name", help="of which F is shown (default: the one that is segmented worst)")
    parser.add_argument("--time", type=float, default=5.0, help="time of the evolution (default: 5)")
    parser.add_argument("--output", type=Path, default=Path("likelihoods.png"))
    options = parser.parse_args()
    for name in ("config.yaml", "last.ckpt"):
        if not (options.run / name).is_file():
            parser.error(f"{options.run} is not a finished run: {name} is missing")
    network, data = load(options.run)
    if options.name not in (None, *data.class_names):
        parser.error(f"--class {options.name} is not a class; the data has {', '.join(data.class_names)}")
    shown = data.class_names.index(options.name) if options.name else None
    draw(network, data, options.image, options.time, shown).savefig(options.output)
    counts = {
        name: torch.zeros(1, data.num_classes, data.num_classes, dtype=torch.int64) for name in ("before", *LABELS)
    }
    for sample in data.test_dataloader().dataset:
        with torch.no_grad():
            scores, results = evolved(network, sample["image"][None], options.time)
        for name, values in (("before", scores), *((name, phi) for name, (_, phi) in results.items())):
            counts[name] += confusion_matrix(values.argmax(1), sample["mask"][None], data.num_classes)
    for name, matrix in counts.items():
        print(f"{name}: mIoU {100 * float(class_iou(overlap_counts(matrix)).nanmean()):.2f}")


if __name__ == "__main__":
    main()
