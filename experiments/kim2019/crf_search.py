"""Searches weight and widths of the dense CRF of finished runs on their validation images, as DeepLab does.

python experiments/kim2019/crf_search.py RUN [RUN …] [--out crf.yaml] [--images 100] [--xy 15 49 80]

RUN is a finished run of a network without CRF. The point with the best mean over the runs is written as a
configuration, and the scores of all points beside it, as a table (crf.csv). The networks run once; their probabilities
are kept in memory. Images much smaller than VOC's want smaller widths (--xy). VOC's validation split is its test split,
too: numbers there with widths that were searched on all of it are tuned on the test (DeepLab takes 100 images of it).
What is written turns no CRF on, so that behind a suite it is seen by the suite's CRF rows alone:

lsseg test --config RUN/config.yaml --config crf.yaml --ckpt_path RUN/last.ckpt --model.crf_iterations 10
lsseg ablate experiments/kim2019/table4.yaml --config crf.yaml
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import yaml

from lsseg import load_run
from lsseg.errors import InputError
from lsseg.functional import class_iou, confusion_matrix, overlap_counts
from lsseg.functional.dense_crf import DenseCRF

ITERATIONS = 10
# The initial ranges of DeepLab (Chen 2018, section 4.1) are 3 to 6, 30 to 100 and 3 to 6.
GRID = {"appearance_weight": (3, 4, 6), "appearance_xy": (15, 49, 80), "appearance_rgb": (3, 5, 10)}


class Scored(NamedTuple):
    """An image with the probabilities of a network, C×H×W, and its truth, 1×H×W."""

    pixels: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    truth: torch.Tensor


def main() -> None:
    """Try every point of the grid."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("crf.yaml"))
    parser.add_argument("--images", type=int, default=100, help="of the validation split to score (default: 100)")
    parser.add_argument("--xy", type=int, nargs="+", default=GRID["appearance_xy"], help="widths in pixels to try")
    options = parser.parse_args()
    try:
        images = {str(run): list(itertools.islice(scored_images(run), options.images)) for run in options.runs}
    except InputError as error:
        sys.exit(f"crf_search.py: {error}")
    grid = GRID | {"appearance_xy": tuple(options.xy)}
    points: list[dict[str, int]] = [
        {},
        *(dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())),
    ]
    rows = []
    for point in points:
        rows.append([100 * miou(own, point) for own in images.values()])
        print(f"{point or 'without'}: {', '.join(f'{score:.2f}' for score in rows[-1])}", flush=True)
    best = max(range(1, len(points)), key=lambda i: np.mean(rows[i]))
    with options.out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*grid, *images])
        table.writerows(
            [*(point.get(key, "") for key in grid), *(f"{x:.2f}" for x in row)]
            for point, row in zip(points, rows, strict=True)
        )
    found = ", ".join(f"{after:.2f} (without {before:.2f})" for before, after in zip(rows[0], rows[best], strict=True))
    head = f"# The best of {', '.join(images)} on validation images: mIoU {found}.\n"
    options.out.write_text(head + yaml.safe_dump({"model": {"init_args": {"crf": points[best]}}}))
    print(f"{options.out}: {points[best]}")


def scored_images(run: Path) -> Iterator[Scored]:
    """The validation images of a run as its network scores them."""
    task, data = load_run(run)
    data.check("val")
    for batch in data.val_dataloader():
        with torch.inference_mode():
            probabilities = task.infer(batch["image"]).float().softmax(1).numpy()
        pixels = (batch["image"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for image, own, truth in zip(pixels, probabilities, batch["mask"], strict=True):
            yield Scored(image, own, truth[None])


def miou(images: list[Scored], point: dict[str, int]) -> float:
    """Mean IoU of the images with a CRF of this point behind the network, or without one."""
    crf = DenseCRF(**point)
    counts = 0
    for image in images:
        after = crf(image.probabilities, image.pixels, ITERATIONS) if point else image.probabilities
        labels = torch.from_numpy(after.argmax(0))[None]
        counts = counts + overlap_counts(confusion_matrix(labels, image.truth, len(after)))[0]
    return float(class_iou(counts).nanmean())


if __name__ == "__main__":
    main()
