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


@pytest.mark.parametrize("data", ["camvid", "car_parts"])
@pytest.mark.parametrize("small", [True, False])
def test_the_suites_of_rates_are_what_the_plan_writes(plan, run, tmp_path, data, small):
    name = f"{data}{'-small' if small else ''}-rates.yaml"
    (tmp_path / name).unlink(missing_ok=True)
    run("rates", data, *(["--small"] if small else []))
    if small:  # those for a GPU are written when they are wanted
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
    suite = load_suite(tmp_path / name)
    assert all(variant.settings["data.test_split"] == "val" for variant in suite.variants)
    assert len(suite.variants) == 2 * 6 * 3
    assert not set(suite.seeds) & set(plan.SEEDS)


def write_results(folder, rows):
    folder.mkdir()
    lines = [",".join(map(str, row)) for row in [("variant", "miou", "train_seconds_per_image"), *rows]]
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_best_rate_on_validation_is_used_for_every_seed(run, tmp_path, capsys):
    rates = load_suite(FOLDER / "camvid-small-rates.yaml")
    rows = [(f'"{v.name}"', 30 - abs(i % 3 - (i // 3) % 3), 0.1) for i, v in enumerate(rates.variants)]
    run("updates", write_results(tmp_path / "compare-camvid-small-rates", rows))
    content = yaml.safe_load((tmp_path / "camvid-small-updates.yaml").read_text())
    grid = [7e-4, 2e-3, 6e-3]
    assert [row["set"]["model.lr"] for row in content["variants"]] == [grid[k % 3] for k in range(12)]
    assert content["name"] == "compare-camvid-small-updates"
    assert content["seeds"] == [0, 1, 2, 3, 4]
    assert "grid" not in content
    assert "data.test_split" not in content["set"]
    assert capsys.readouterr().out.count("at the edge of the grid") == 8


def test_no_rate_is_chosen_from_part_of_the_grid(run, tmp_path):
    rates = load_suite(FOLDER / "camvid-small-rates.yaml")
    rows = [(f'"{v.name}"', 30, 0.1) for i, v in enumerate(rates.variants) if i != 4]
    with pytest.raises(SystemExit, match="not run yet: go on with `lsseg ablate"):
        run("updates", write_results(tmp_path / "compare-camvid-small-rates", rows))
    with pytest.raises(SystemExit, match="is no folder of compare-"):
        run("updates", tmp_path)


def test_equal_time_means_as_many_updates_as_fit(plan):
    before = {
        "base": ["base.yaml", "small.yaml"],
        "variants": [
            {"name": "cross_entropy", "set": {"model.lr": 1}, "baseline": "cross_entropy"},
            {"name": "dmls", "set": {"model.lr": 2}, "baseline": "cross_entropy"},
        ],
    }
    seconds = {"cross_entropy": ["0.02", "0.09"], "dmls": ["0.06", "0.05"]}  # the fastest run was disturbed least
    results = {name: [{"train_seconds_per_image": each} for each in own] for name, own in seconds.items()}
    found = plan.equal_time(before, results)["variants"]
    assert [row["set"]["trainer.max_steps"] for row in found] == [200, 80]
    assert [row["set"]["model.lr"] for row in found] == [1, 2]


def test_times_may_come_from_short_runs_that_were_timed_alone(run, tmp_path, capsys):
    rates = load_suite(FOLDER / "camvid-small-updates.yaml")
    rows = {
        place: [(v.name, 30, t if "cross" in v.name else 0.1) for v in rates.variants for _ in rates.seeds]
        for place, t in (("updates", 0.001), ("updates-clock", 0.05))
    }
    rows["updates-clock"] = rows["updates-clock"][:: len(rates.seeds)]  # one of each is enough
    folders = {place: write_results(tmp_path / f"compare-camvid-small-{place}", rows[place]) for place in rows}
    run("time", folders["updates"], "--clock", folders["updates-clock"])
    content = yaml.safe_load((tmp_path / "camvid-small-time.yaml").read_text())
    assert [row["set"]["trainer.max_steps"] for row in content["variants"]] == [200, 100, 100, 100, 100, 100] * 2
