"""Plans the comparison of all methods, stage by stage; each stage is a suite for `lsseg ablate`, beside this file.

python experiments/compare/plan.py rates camvid [--small]                        → camvid[-small]-rates.yaml
python experiments/compare/plan.py updates runs/compare-camvid[-small]-rates     → camvid[-small]-updates.yaml
python experiments/compare/plan.py time runs/compare-camvid[-small]-updates      → camvid[-small]-time.yaml
    [--clock runs/compare-camvid[-small]-updates-clock]

1. rates: every method with every learning rate of one grid, scored on the validation split, with a seed of its own.
2. updates: every method at its best rate, five seeds, equal numbers of updates, scored on the test split.
3. time: the same, with as many updates as fit into the training time of cross-entropy, measured in stage 2. Where
   something else ran beside stage 2, its times say little: then, on a machine that does nothing else,
   `lsseg ablate camvid[-small]-updates.yaml --config clock.yaml --only '*-seed0'`, and --clock with its folder.

`camvid` or `car_parts` (as semantic classes); two encoders. --small fits two CPU cores.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import yaml

from lsseg.ablation.spec import load_suite

HERE = Path(__file__).parent
SEEDS = [0, 1, 2, 3, 4]
SEED_OF_RATES = 100  # none of those that are compared
LEVEL_SET_WEIGHT = 0.67  # of Kim 2019, for all methods; see LevelSetLoss
BASELINE = "cross_entropy"
Settings = dict[str, Any]
Results = dict[str, list[dict[str, str]]]  # a row for each run, by variant
# Label, task and, where it is not the plain one, what wraps the network.
METHODS: dict[str, tuple[str, Settings, str]] = {
    BASELINE: ("cross-entropy", {"model": "SegmentationTask"}, ""),
    "level_set": ("+ level set", {"model": "LevelSetLossTask", "model.level_set_weight": LEVEL_SET_WEIGHT}, ""),
    "dmls": ("DMLS", {"model": "DMLSTask"}, "DMLS"),
    "dmls_level_set": (
        "DMLS + level set",
        {"model": "DMLSTask", "model.level_set_weight": LEVEL_SET_WEIGHT},
        "DMLS",
    ),
    "chan_vese": ("Chan–Vese head", {"model": "ChanVeseTask"}, "ChanVeseNet"),
    "chan_vese_level_set": (
        "Chan–Vese head + level set",
        {"model": "ChanVeseTask", "model.level_set_weight": LEVEL_SET_WEIGHT},
        "ChanVeseNet",
    ),
}
DATA: dict[str, Settings] = {
    "camvid": {},
    "car_parts": {
        "data": "ObjectClasses",
        "data.objects": "CarParts",
        "data.flip": False,  # a mirrored left door is a right one
    },
}
# 200 updates do not teach 18 parts (mIoU 4 to 10, "always background" has 3.7); these they do.
PARTS = {
    "bumper": ["front_bumper", "back_bumper"],
    "glass": ["front_glass", "back_glass"],
    "door": ["front_left_door", "front_right_door", "back_left_door", "back_right_door"],
    "light": ["front_left_light", "front_right_light", "back_left_light", "back_right_light"],
    "mirror": ["left_mirror", "right_mirror"],
    "hood": ["hood"],
    "rear": ["trunk", "tailgate"],
    "wheel": ["wheel"],
}
SIZES: dict[str, dict[str, Any]] = {
    "": {
        "rates": [1e-4, 3e-4, 1e-3],
        "encoders": {"resnet50": "ResNet-50", "mit_b2": "MiT-B2"},
        "network": {"encoder_weights": "imagenet"},
        "wrapped": {"DMLS": {"steps": 4}, "ChanVeseNet": {"stride": 2, "features": 64}},
        "car_parts": {"data.crop_size": [448, 448]},
    },
    "small": {
        "rates": [7e-4, 2e-3, 6e-3],
        "encoders": {"tu-test_resnet.r160_in1k": "tiny ResNet", "tu-test_efficientnet.r160_in1k": "tiny EfficientNet"},
        "network": {"encoder_weights": None, "decoder": {"decoder_channels": [96, 64, 32, 16, 16]}},
        "wrapped": {"DMLS": {"steps": 2}, "ChanVeseNet": {"stride": 2, "features": 32}},
        "car_parts": {
            "data.resize": [112, 112],
            "data.crop_size": [96, 96],
            "data.groups": PARTS,
            "data.flip": True,  # left and right parts are one class
        },
    },
}


def main() -> None:
    """Write the suite of a stage."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["rates", "updates", "time"])
    parser.add_argument("what", help="rates: camvid or car_parts; else the folder of the stage before")
    parser.add_argument("--small", action="store_true", help="rates: for two CPU cores")
    parser.add_argument("--clock", type=Path, help="time: folder of short runs that were timed alone")
    options = parser.parse_args()
    if options.clock and options.stage != "time":
        parser.error("--clock belongs to the stage time")
    if options.stage == "rates":
        if options.what not in DATA:
            sys.exit(f"{options.what!r} is none of {', '.join(DATA)}")
        name = f"{options.what}-small" if options.small else options.what
        suite = rates(name)
    else:
        before = {"updates": "rates", "time": "updates"}[options.stage]
        name = Path(options.what).resolve().name.removeprefix("compare-").removesuffix(f"-{before}")
        found = HERE / f"{name}-{before}.yaml"
        if not found.is_file():
            sys.exit(f"{options.what} is no folder of compare-…-{before}: there is no {found}")
        suite = yaml.safe_load(found.read_text())
        results = read_results(options.clock or Path(options.what), found, every_seed=not options.clock)
        suite = updates(suite, results) if options.stage == "updates" else equal_time(suite, results)
    path = HERE / f"{name}-{options.stage}.yaml"
    head = f"# {HEADS[options.stage]}\n# Written by plan.py. lsseg ablate experiments/compare/{path.name}\n"
    title = {"name": f"compare-{name}-{options.stage}"}
    suite = title | suite | title  # first in the file, and not that of the stage before
    path.write_text(head + yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, width=110))
    print(path)


HEADS = {
    "rates": "All methods with every rate of one grid, on the validation split.",
    "updates": "All methods at equal numbers of updates, each at its best rate of the grid.",
    "time": "All methods at equal training time: the updates that fit into that of cross-entropy.",
}


def rates(name: str) -> dict[str, Any]:
    """Every method and encoder, with the grid of rates."""
    data, _, size = name.partition("-")
    sizes = SIZES[size]
    return {
        "base": ["base.yaml", *([f"{size}.yaml"] if size else [])],
        "set": {**DATA[data], **(sizes[data] if DATA[data] else {}), "data.test_split": "val"},
        "seeds": [SEED_OF_RATES],
        "variants": [
            variant(encoder, shown, method, sizes) for encoder, shown in sizes["encoders"].items() for method in METHODS
        ],
        "grid": {"model.lr": sizes["rates"]},
    }


def variant(encoder: str, shown: str, method: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """One method on one encoder."""
    label, task, wrapper = METHODS[method]
    settings, place = dict(task), "model.network"
    if wrapper:
        settings[place] = wrapper
        settings |= {f"{place}.{key}": value for key, value in sizes["wrapped"][wrapper].items()}
        place += ".network"
    settings |= {place: "SmpNet", f"{place}.architecture": "unet", f"{place}.encoder_name": encoder}
    settings |= {f"{place}.{key}": value for key, value in sizes["network"].items()}
    short = encoder.removeprefix("tu-test_").partition(".")[0]
    return {
        "name": f"{short}-{method}",
        "label": f"{shown}, {label}",
        "set": settings,
        "baseline": f"{short}-{BASELINE}",
    }


def updates(before: dict[str, Any], results: Results) -> dict[str, Any]:
    """Every method at the rate with the best validation mIoU."""
    grid = before.pop("grid")["model.lr"]
    for row in before["variants"]:
        scores = {rate: float(results[f"{row['name']},lr={rate}"][0]["miou"]) for rate in grid}
        best = max(scores, key=lambda rate: scores[rate])
        edge = "  (at the edge of the grid)" if best in (grid[0], grid[-1]) else ""
        print(f"{row['name']}: {', '.join(f'{r}: {s:.2f}' for r, s in scores.items())} → {best}{edge}")
        row["set"]["model.lr"] = best
    del before["set"]["data.test_split"]
    return {**before, "seeds": SEEDS}


def equal_time(before: dict[str, Any], results: Results) -> dict[str, Any]:
    """Every method with the updates that fit into the training time of the baseline on its encoder.

    Of a method's runs the fastest is the one that was disturbed least by what else the machine did.
    """
    seconds = {name: min(float(run["train_seconds_per_image"]) for run in runs) for name, runs in results.items()}
    steps = yaml.safe_load((HERE / before["base"][-1]).read_text())["trainer"]["max_steps"]
    for row in before["variants"]:
        ratio = seconds[row["name"]] / seconds[row["baseline"]]
        count = max(1, round(steps / ratio))
        print(f"{row['name']}: {ratio:.2f} times the time of an update, {count} updates")
        row["set"] |= {"trainer.max_steps": count, "trainer.val_check_interval": count}
    return before


def read_results(folder: Path, made_by: Path, every_seed: bool = True) -> Results:
    """The runs of a suite by variant; every variant must be there, with all seeds or with one at least."""
    path = folder / "runs.csv"
    if not path.is_file():
        sys.exit(f"{path} is missing: run the stage before this one first")
    suite = load_suite(made_by)
    runs: Results = {variant.name: [] for variant in suite.variants}
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["variant"] in runs:
                runs[row["variant"]].append(row)
    missing = [name for name, rows in runs.items() if len(rows) < (len(suite.seeds) if every_seed else 1)]
    if missing:
        sys.exit(f"{path}: {', '.join(missing)} not run yet: go on with `lsseg ablate {made_by.name}`")
    return runs


if __name__ == "__main__":
    main()
