"""The plan of the comparison: rates from validation, then equal updates, then equal time."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from lsseg.ablation.spec import load_suite

FOLDER = Path(__file__).parents[2] / "experiments" / "compare"


@pytest.fixture(scope="module")
def plan():
    spec = importlib.util.spec_from_file_location("plan", FOLDER / "plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(plan, monkeypatch, tmp_path):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["plan.py", *map(str, arguments)])
        plan.main()

    for path in FOLDER.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(plan, "HERE", tmp_path)

    return call


@pytest.mark.parametrize("data", ["camvid", "car_parts", "nuclei"])
@pytest.mark.parametrize("size", ["full", "lite", "random"])
def test_the_suites_of_rates_are_what_the_plan_writes(plan, run, tmp_path, data, size):
    name = f"{data}-{size}-rates.yaml"
    (tmp_path / name).unlink(missing_ok=True)
    run("rates", data, "--size", size)
    if (FOLDER / name).is_file():  # the others are written when they are wanted
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
    suite = load_suite(tmp_path / name)
    assert all(variant.settings["data.test_split"] == "val" for variant in suite.variants)
    steps = plan.steps_of({"base": ["base.yaml" if size == "full" else "lite.yaml"]})
    assert {v.settings["trainer.max_steps"] for v in suite.variants} == {steps // (2 if size == "full" else 4)}
    own = len(plan.METHODS) - len(plan.RATE_OF)
    assert len(suite.variants) == (own * 3 * 2 if size == "full" else own * 5)
    assert not set(suite.seeds) & set(plan.SEEDS)


def write_results(folder, rows):
    folder.mkdir()
    lines = [",".join(map(str, row)) for row in [("variant", "miou", "train_seconds_per_image"), *rows]]
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def rates(plan, run, tmp_path):
    """Results by (method, rate): all are best at the rate in the middle."""
    run("rates", "camvid", "--size", "lite", "--rates", "4e-3", "1e-3", "2e-3", "8e-3")
    own = [method for method in plan.METHODS if method not in plan.RATE_OF]
    return {(method, rate): 30 - abs(rate - 2e-3) for method in own for rate in (1e-3, 2e-3, 4e-3)}


def written(folder, results):
    rows = [(f'"{method},lr={rate}"', score, 0.1) for (method, rate), score in results.items()]
    return write_results(folder / "compare-camvid-lite-rates", rows)


def test_the_best_rate_on_validation_is_used_for_every_seed_and_for_hybrids(plan, run, rates, tmp_path):
    rates["lovasz", 8e-3], rates["lovasz", 4e-3] = 30.5, 31
    rates["dmls", 8e-3], rates["dmls", 4e-3] = 29, 30.9  # too small a lead for one seed
    run("updates", written(tmp_path, rates))
    content = yaml.safe_load((tmp_path / "camvid-lite-updates.yaml").read_text())
    chosen = {row["name"]: row["set"]["model.lr"] for row in content["variants"]}
    assert chosen == {m: 4e-3 if "lovasz" in m else 2e-3 for m in plan.METHODS}
    assert (content["name"], content["seeds"]) == ("compare-camvid-lite-updates", [0, 1, 2])
    assert "grid" not in content
    assert not content["set"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({("dmls", 1e-3): 40}, "dmls: 0.001 is at the edge of the grid: widen it by `rates … --rates`"),
        ({("dmls", 4e-3): 40}, "dmls,lr=0.008 is not run yet"),
        ({("dmls", 4e-3): None}, "dmls,lr=0.004 is not run yet"),
    ],
)
def test_no_rate_is_chosen_at_an_edge_or_beside_a_gap(run, rates, tmp_path, change, reason):
    with pytest.raises(SystemExit) as error:
        run("updates", written(tmp_path, {key: score for key, score in (rates | change).items() if score}))
    assert str(error.value) == reason


def test_stages_are_taken_in_their_order(run, tmp_path):
    with pytest.raises(SystemExit, match="is not a folder of compare-"):
        run("updates", tmp_path)


def test_equal_time_means_as_many_more_updates_of_the_baseline(plan):
    names = {"cross_entropy": "Cross-entropy", "lovasz": "Lovász", "dmls": "DMLS", "hybrid": "Both"}
    before = {
        "base": ["base.yaml", "small.yaml"],
        "variants": [
            {"name": name, "label": label, "set": {"model.lr": i}, "baseline": "cross_entropy"}
            for i, (name, label) in enumerate(names.items())
        ],
    }
    # The fastest run was disturbed least.
    seconds = {"cross_entropy": ["0.02", "0.09"], "lovasz": ["0.0201"], "dmls": ["0.06", "0.05"], "hybrid": ["0.0499"]}
    results = {name: [{"train_seconds_per_image": each} for each in own] for name, own in seconds.items()}
    rows = {row["name"]: row for row in plan.equal_time(before, results)["variants"]}
    assert list(rows) == ["cross_entropy", "lovasz", "cross_entropy_2.5x", "dmls", "hybrid"]
    against = [row["baseline"] for row in rows.values()]
    assert against == ["cross_entropy", "cross_entropy", "cross_entropy", "cross_entropy_2.5x", "cross_entropy_2.5x"]
    assert rows["cross_entropy_2.5x"]["set"] == {"model.lr": 0, "trainer.max_steps": 500}
    assert rows["dmls"]["set"] == {"model.lr": 2}


def test_times_may_come_from_short_runs_that_were_timed_alone(plan, run, rates, tmp_path):
    run("updates", written(tmp_path, rates))
    timed = [(method, 30, 0.05 if method == "cross_entropy" else 0.1) for method in plan.METHODS]
    clock = write_results(tmp_path / "clock", timed)
    run("time", tmp_path / "compare-camvid-lite-updates", "--clock", clock)
    suite = load_suite(tmp_path / "camvid-lite-time.yaml")
    rows = {variant.name: variant for variant in suite.variants}
    assert rows["cross_entropy_2x"].settings["trainer.max_steps"] == 2 * plan.steps_of({"base": ["lite.yaml"]})
    assert [variant.baseline for name, variant in rows.items() if "cross" not in name] == ["cross_entropy_2x"] * 10
    write_results(tmp_path / "short", timed[:-1])
    with pytest.raises(SystemExit, match=f"not run yet: {timed[-1][0]}"):
        run("time", tmp_path / "compare-camvid-lite-updates", "--clock", tmp_path / "short")
