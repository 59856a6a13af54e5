"""Searches weight and widths of the dense CRF of a run on its validation split, as DeepLab does; writes the best.

python experiments/kim2019/crf_search.py RUN [--out crf.yaml] [--batches 50] [--xy 15 49 80]

RUN is a finished run of a network without CRF; images much smaller than VOC's want smaller widths (--xy). VOC's
validation split is its test split, too: numbers there with widths that were searched on all of it are tuned on the
test (DeepLab takes 100 images of it). What is written is a configuration to put behind others; it turns no CRF on, so
that behind a suite it is seen by the suite's CRF rows alone:

lsseg test --config RUN/config.yaml --config crf.yaml --ckpt_path RUN/last.ckpt --model.crf_iterations 10
lsseg ablate experiments/kim2019/table4.yaml --config crf.yaml
"""

import argparse
import contextlib
import io
import itertools
import json
import sys
import tempfile
from pathlib import Path

import yaml

from lsseg.cli import main as lsseg

ITERATIONS = 10
GRID = {"appearance_weight": (3, 4, 6), "appearance_xy": (15, 49, 80), "appearance_rgb": (3, 5, 10)}


def main() -> None:
    """Try every point of the grid."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("crf.yaml"))
    parser.add_argument("--batches", type=int, default=50, help="of the validation split to score (default: 50)")
    parser.add_argument("--xy", type=int, nargs="+", default=GRID["appearance_xy"], help="widths in pixels to try")
    options = parser.parse_args()
    grid = GRID | {"appearance_xy": tuple(options.xy)}
    if not (options.run / "last.ckpt").is_file():
        sys.exit(f"{options.run} is no finished run: it has no last.ckpt")
    plain = miou(options.run, {}, options.batches)
    print(f"without: validation mIoU {100 * plain:.2f}")
    best, chosen = -1.0, {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        score = miou(options.run, point, options.batches)
        print(f"{point}: {100 * score:.2f}")
        if score > best:
            best, chosen = score, point
    head = f"# The best of {options.run} on validation: mIoU {100 * best:.2f}, without {100 * plain:.2f}.\n"
    options.out.write_text(head + yaml.safe_dump({"model": {"init_args": {"crf": chosen}}}))
    print(f"{options.out}: {chosen}")


def miou(run: Path, crf: dict[str, int], batches: int) -> float:
    """Validation mIoU of a run with a CRF behind it."""
    command: list[object] = ["validate", "--config", run / "config.yaml"]
    command += ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]  # this process and no other
    command += ["--ckpt_path", run / "last.ckpt", f"--trainer.limit_val_batches={batches}", "--panels.images=0"]
    command += [f"--model.crf_iterations={ITERATIONS if crf else 0}"]
    with tempfile.TemporaryDirectory() as folder:
        command += [f"--trainer.default_root_dir={folder}/validated", *(f"--model.crf.{k}={v}" for k, v in crf.items())]
        with contextlib.redirect_stdout(io.StringIO()):
            status = lsseg([str(part) for part in command])
        if status:
            sys.exit(status)
        rows = (Path(folder) / "validated" / "metrics.jsonl").read_text().splitlines()
    return next(float(row["val/miou"]) for row in map(json.loads, reversed(rows)) if "val/miou" in row)


if __name__ == "__main__":
    main()
