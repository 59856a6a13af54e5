"""Plans the comparison of all methods, stage by stage; each stage is a suite for `lsseg ablate`, beside this file.

python experiments/compare/plan.py rates camvid --size lite         → camvid-lite-rates.yaml
python experiments/compare/plan.py updates runs/compare-camvid-lite-rates     → camvid-lite-updates.yaml
python experiments/compare/plan.py time runs/compare-camvid-lite-updates      → camvid-lite-time.yaml
    [--clock runs/compare-camvid-lite-updates-clock]

1. rates: every method with every learning rate of one grid, scored on the validation split, with a seed of its own and
   a share of the updates (a half at the full size, else a quarter); the hybrids take the rate of the method that they
   add a loss to. Where the best rate of a method is at the edge of the grid, stage 2 refuses it: write this stage again
   with more `--rates`, and run it for those methods (`lsseg ablate … --only 'METHOD,*'`).
2. updates: every method, three seeds, equal numbers of updates, scored on the test split. A method takes its best rate
   where this leads cross-entropy's rate by a point or more, and cross-entropy's otherwise: a smaller lead on one seed
   is noise.
3. time: every method against cross-entropy with as many more updates as the method's training time allows, so that no
   method is stopped before its time. The methods' runs are those of stage 2: copy them
   (`cp -r runs/compare-camvid-lite-updates/*-seed* runs/compare-camvid-lite-time/`), and cross-entropy alone is left.
   Times are those of stage 2; where something else ran beside it they say little. Then, on a machine that does nothing
   else, `lsseg ablate camvid-lite-updates.yaml --config clock.yaml --jobs 1`, and --clock with its folder.

`camvid`, `car_parts` or `nuclei` (as semantic classes). Sizes: `full` for a GPU; for a CPU core a run `lite`, U-Net on
EfficientNet-Lite0 with ImageNet's weights, and `random`, on a tiny ResNet with random ones.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import yaml

from lsseg.ablation.spec import load_suite

HERE = Path(__file__).parent
SEEDS = [0, 1, 2]
SEED_OF_RATES = 100  # none of those that are compared
MARGIN = 1.0  # points of mIoU by which a rate must lead that of the baseline to be taken
WEIGHT = 0.67  # of the level-set loss, for all methods; see LevelSetLoss
ENERGY = {"model.criterion": "CrossEntropyLevelSetLoss", "model.criterion.level_set_weight": WEIGHT}
BASELINE = "cross_entropy"
Settings = dict[str, Any]
Results = dict[str, list[dict[str, str]]]  # a row for each run, by variant
LOVASZ = {
    "model.criterion": "CrossEntropyPlus",
    "model.criterion.loss": "segmentation_models_pytorch.losses.LovaszLoss",
    "model.criterion.loss.mode": "multiclass",
    "model.criterion.pixels": True,
}
# Label, settings and, where it is not the plain one, what wraps the network.
METHODS: dict[str, tuple[str, Settings, str]] = {
    BASELINE: ("Cross-entropy", {"model": "SegmentationTask"}, ""),
    "level_set": ("+ level set", {"model": "LevelSetLossTask", "model.level_set_weight": WEIGHT}, ""),
    "lovasz": ("+ Lovász", {"model": "SegmentationTask", **LOVASZ}, ""),
    "level_set_lovasz": (
        "+ level set + Lovász",
        {"model": "SegmentationTask", **LOVASZ, "model.criterion.level_set_weight": WEIGHT},
        "",
    ),
    "dmls": ("DMLS", {"model": "DMLSTask"}, "DMLS"),
    "dmls_off": ("DMLS without its layer", {"model": "DMLSTask", "model.network.level_set": False}, "DMLS"),
    "dmls_weights": ("DMLS, class weights", {"model": "DMLSTask", "model.class_weights": "median_frequency"}, "DMLS"),
    "dmls_level_set": ("DMLS + level set", {"model": "DMLSTask", **ENERGY}, "DMLS"),
    "chan_vese": ("Chan–Vese refiner", {"model": "ChanVeseTask"}, "ChanVeseNet"),
    "convolution": (
        "Convolution in its place",
        {"model": "ChanVeseTask", "model.network.refine": "convolution"},
        "ChanVeseNet",
    ),
    "chan_vese_level_set": (
        "Chan–Vese refiner + level set",
        {"model": "ChanVeseTask", **ENERGY},
        "ChanVeseNet",
    ),
}
# A hybrid is trained at the rate of the method that it adds a loss, or class weights, to.
RATE_OF = {
    "level_set_lovasz": "lovasz",
    "dmls_weights": "dmls",
    "dmls_level_set": "dmls",
    "chan_vese_level_set": "chan_vese",
}
# Left and right parts are one class, so that images may be mirrored.
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
DATA: dict[str, Settings] = {
    "camvid": {},
    "car_parts": {"data": "ObjectClasses", "data.objects": "CarParts", "data.groups": PARTS, "data.flip": True},
    "nuclei": {"data": "ObjectClasses", "data.objects": "NucleiDSB2018", "data.flip": True},
}
SMALL: dict[str, Any] = {
    "base": ["base.yaml", "lite.yaml"],
    "rates": [5e-4, 1e-3, 2e-3, 4e-3, 8e-3],
    "share": 4,
    "wrapped": {"DMLS": {"steps": 2}, "ChanVeseNet": {"stride": 2, "features": 32}},
    "car_parts": {"data.resize": [160, 160], "data.crop_size": [128, 128]},
    "nuclei": {"data.resize": [192, 192], "data.crop_size": [128, 128]},
}
DECODER = {"decoder_channels": [96, 64, 32, 16, 16]}
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "base": ["base.yaml"],
        "rates": [1e-4, 3e-4, 1e-3],
        "share": 2,
        "encoders": {"resnet50": "ResNet-50", "mit_b2": "MiT-B2"},
        "network": {"encoder_weights": "imagenet"},
        "wrapped": {"DMLS": {"steps": 4}, "ChanVeseNet": {"stride": 2, "features": 64}},
        "car_parts": {"data.crop_size": [448, 448]},
        "nuclei": {"data.crop_size": [256, 256]},
    },
    "lite": {
        **SMALL,
        "encoders": {"tu-tf_efficientnet_lite0": "EfficientNet-Lite0"},
        "network": {"encoder_weights": "imagenet", "decoder": DECODER},
    },
    "random": {
        **SMALL,
        "encoders": {"tu-test_resnet.r160_in1k": "tiny ResNet"},
        "network": {"encoder_weights": None, "decoder": DECODER},
    },
}


def main() -> None:
    """Write the suite of a stage."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["rates", "updates", "time"])
    parser.add_argument("what", help=f"rates: {', '.join(DATA)}; else the folder of the stage before")
    parser.add_argument("--size", choices=SIZES, default="full", help="rates: of the network and its images")
    parser.add_argument("--rates", type=float, nargs="+", help="rates: instead of the size's own grid")
    parser.add_argument("--clock", type=Path, help="time: folder of short runs that were timed alone")
    options = parser.parse_args()
    if options.clock and options.stage != "time":
        parser.error("--clock can only be used with the stage time")
    if options.stage == "rates":
        if options.what not in DATA:
            sys.exit(f"{options.what!r} must be one of {', '.join(DATA)}")
        name = f"{options.what}-{options.size}"
        suite = rates(name, options.rates or SIZES[options.size]["rates"])
    else:
        before = {"updates": "rates", "time": "updates"}[options.stage]
        name = Path(options.what).resolve().name.removeprefix("compare-").removesuffix(f"-{before}")
        found = HERE / f"{name}-{before}.yaml"
        if not found.is_file():
            sys.exit(f"{options.what} is not a folder of compare-…-{before}: {found} does not exist")
        suite = yaml.safe_load(found.read_text())
        results = read_results(options.clock or Path(options.what), found)
        if options.stage == "updates":
            suite = updates(name, suite["grid"]["model.lr"], results)
        else:
            suite = equal_time(suite, results)
    path = HERE / f"{name}-{options.stage}.yaml"
    head = f"# {HEADS[options.stage]}\n# Written by plan.py. lsseg ablate experiments/compare/{path.name}\n"
    suite = {"name": f"compare-{name}-{options.stage}"} | {key: suite[key] for key in suite if key != "name"}
    path.write_text(head + yaml.dump(suite, Dumper=Plain, sort_keys=False, allow_unicode=True, width=110))
    print(path)


class Plain(yaml.SafeDumper):
    """Writes what occurs twice twice, so that a row can be read alone."""

    def ignore_aliases(self, data: object) -> bool:
        """Always."""
        return True


HEADS = {
    "rates": "The methods with every rate of one grid, on the validation split.",
    "updates": "All methods at equal numbers of updates, each at the rate that validation images chose.",
    "time": "All methods, each against cross-entropy with as many updates as fit into the method's training time.",
}


def suite_of(name: str, methods: list[str]) -> dict[str, Any]:
    """These methods on every encoder, for data and size."""
    data, _, key = name.rpartition("-")
    size = SIZES[key]
    rows = [variant(encoder, shown, method, size) for encoder, shown in size["encoders"].items() for method in methods]
    return {"base": size["base"], "set": {**DATA[data], **size.get(data, {})}, "variants": rows}


def rates(name: str, grid: list[float]) -> dict[str, Any]:
    """Every method that has a rate of its own, and encoder, with the grid of rates."""
    suite = suite_of(name, [method for method in METHODS if method not in RATE_OF])
    suite["set"]["data.test_split"] = "val"
    steps = steps_of(suite) // SIZES[name.rpartition("-")[2]]["share"]
    suite["set"] |= {"trainer.max_steps": steps, "trainer.val_check_interval": steps}
    return {**suite, "seeds": [SEED_OF_RATES], "grid": {"model.lr": sorted(grid)}}


def steps_of(suite: dict[str, Any]) -> int:
    """The number of updates of a suite's base."""
    steps: int = yaml.safe_load((HERE / suite["base"][-1]).read_text())["trainer"]["max_steps"]
    return steps


def variant(encoder: str, shown: str, method: str, size: dict[str, Any]) -> dict[str, Any]:
    """One method on one encoder."""
    label, task, wrapper = METHODS[method]
    settings, place = dict(task), "model.network"
    if wrapper:
        settings[place] = wrapper
        settings |= {f"{place}.{key}": value for key, value in size["wrapped"][wrapper].items()}
        place += ".network"
    settings |= {place: "SmpNet", f"{place}.architecture": "unet", f"{place}.encoder_name": encoder}
    settings |= {f"{place}.{key}": value for key, value in size["network"].items()}
    first = f"{encoder}-" if len(size["encoders"]) > 1 else ""
    return {
        "name": f"{first}{method}",
        "label": f"{shown}, {label}" if first else label,
        "set": settings,
        "baseline": f"{first}{BASELINE}",
    }


def updates(name: str, grid: list[float], results: Results) -> dict[str, Any]:
    """Every method at the rate with the best validation mIoU, or its baseline's if that is about as good.

    The rates beside the best one must have been run, too.
    """
    suite = suite_of(name, list(METHODS))
    missing = []
    taken: dict[str, float] = {}
    for row in suite["variants"]:
        first, dash, method = row["name"].rpartition("-")
        own = f"{first}{dash}{RATE_OF.get(method, method)}"
        names = {rate: f"{own},lr={rate}" for rate in grid}
        found = {rate: float(results[run][0]["miou"]) for rate, run in names.items() if run in results}
        best = max(found, key=lambda rate: found[rate], default=grid[0])
        usual = taken.get(row["baseline"], best)
        taken[row["name"]] = best if found.get(best, 0) >= found.get(usual, -MARGIN) + MARGIN else usual
        row["set"]["model.lr"] = taken[row["name"]]
        if own != row["name"]:
            continue
        shown = ", ".join(f"{rate}: {score:.2f}" for rate, score in found.items())
        print(f"{own}: {shown} → {taken[own]}")
        place = grid.index(best)
        if place in (0, len(grid) - 1):
            missing.append(f"{own}: {best} is at the edge of the grid: widen it by `rates … --rates`")
        beside = grid[max(0, place - 1) : place + 2]
        missing += [f"{names[rate]} is not run yet" for rate in beside if rate not in found]
    if missing:
        sys.exit("\n".join(missing))
    return {**suite, "seeds": SEEDS}


def equal_time(before: dict[str, Any], results: Results) -> dict[str, Any]:
    """Every method, and its baseline with the updates that fit into the method's training time, to a tenth.

    Of a method's runs the fastest is the one that was disturbed least by what else the machine did.
    """
    missing = [row["name"] for row in before["variants"] if row["name"] not in results]
    if missing:
        sys.exit(f"not run yet: {', '.join(missing)}")
    seconds = {name: min(float(run["train_seconds_per_image"]) for run in runs) for name, runs in results.items()}
    steps = steps_of(before)
    plain = {row["name"]: row for row in before["variants"]}
    rows: dict[str, dict[str, Any]] = {}
    for name, row in plain.items():
        own = plain[row["baseline"]]
        times = max(1, round(seconds[name] / seconds[own["name"]], 1))
        longer = f"{own['name']}_{times:g}x"
        print(f"{name}: {times:g} times the time of an update")
        if times > 1 and longer not in rows:
            settings = {**own["set"], "trainer.max_steps": round(times * steps)}
            label = f"{own['label']}, {times:g} times the updates"
            rows[longer] = {"name": longer, "label": label, "set": settings, "baseline": own["name"]}
        rows[name] = {**row, "baseline": longer if times > 1 else own["name"]}
    return {**before, "variants": list(rows.values())}


def read_results(folder: Path, made_by: Path) -> Results:
    """The finished runs of a suite by variant."""
    path = folder / "runs.csv"
    if not path.is_file():
        sys.exit(f"{path} is missing: run the stage before this one first")
    known = {variant.name for variant in load_suite(made_by).variants}
    runs: Results = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["variant"] in known:
                runs.setdefault(row["variant"], []).append(row)
    return runs


if __name__ == "__main__":
    main()
