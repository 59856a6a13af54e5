"""A dense CRF behind a network when it is tested, and the search for its widths."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.extra("crf")


def test_a_dense_crf_stands_behind_the_network_when_it_is_tested(trained, lsseg, tmp_path):
    test = ("test", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt")
    plain, refined = tmp_path / "plain", tmp_path / "refined"
    assert lsseg(*test, "--trainer.default_root_dir", plain)[0] == 0
    status, _, err = lsseg(*test, "--trainer.default_root_dir", refined, "--model.crf_iterations", 2)
    assert status == 0, err
    scores = [json.loads((folder / "test.json").read_text())["scores"]["accuracy"] for folder in (plain, refined)]
    assert scores[0] != scores[1]
    status, _, err = lsseg(*test, "--trainer.default_root_dir", tmp_path / "wrong", "--model.crf_iterations", -1)
    assert status == 1
    assert "model.crf_iterations must not be negative, not -1" in err


def test_the_widths_of_a_crf_are_searched_on_validation_images(trained, lsseg, tmp_path, monkeypatch, capfd):
    path = Path(__file__).parents[2] / "experiments" / "kim2019" / "crf_search.py"
    spec = importlib.util.spec_from_file_location("crf_search", path)
    search = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(search)
    grid = {"appearance_weight": (3,), "appearance_xy": (15,), "appearance_rgb": (3, 200)}
    monkeypatch.setattr(search, "GRID", grid)
    runs = [str(trained), f"{trained}/"]
    monkeypatch.setattr("sys.argv", ["crf_search.py", *runs, "--out", str(tmp_path / "crf.yaml"), "--xy", "20"])
    search.main()
    scores = re.findall(r"(without|3\}|200\}): .*?([\d.]+)\n", capfd.readouterr().out)
    best = max(("3}", "200}"), key=lambda end: float(dict(scores)[end]))
    rows = list(csv.reader((tmp_path / "crf.csv").read_text().splitlines()))
    assert [row[2] for row in rows] == ["appearance_rgb", "", "3", "200"]
    assert rows[1][3] == dict(scores)["without"]
    found = yaml.safe_load((tmp_path / "crf.yaml").read_text())["model"]["init_args"]
    # No iterations: behind a suite it must not put a CRF behind the rows without.
    assert found == {"crf": {"appearance_weight": 3, "appearance_xy": 20, "appearance_rgb": int(best[:-1])}}
    again = ("--config", tmp_path / "crf.yaml", "--ckpt_path", trained / "last.ckpt", "--data.test_split", "val")
    again += ("--model.crf_iterations", 10)
    run = ("--trainer.default_root_dir", tmp_path / "again")
    assert lsseg("test", "--config", trained / "config.yaml", *again, *run)[0] == 0
    score = json.loads((tmp_path / "again" / "test.json").read_text())["scores"]["miou"]
    assert 100 * score == pytest.approx(float(dict(scores)[best]), abs=0.006)
