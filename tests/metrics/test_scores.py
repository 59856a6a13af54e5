"""The table of scores: a new score is a row, and what it counts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lsseg.ablation.report import write_report
from lsseg.metrics.counts import COUNTERS
from lsseg.metrics.scores import SCORES, Score, Summed

TINY = Path(__file__).parents[1] / "cli" / "tiny.yaml"


def count_sizes(prediction, target, num_classes, ignore_index):
    """Pixels of every class in prediction and truth, B×C×2."""
    valid = target != ignore_index
    maps = [torch.stack([(labels == c) & valid for c in range(num_classes)], 1) for labels in (prediction, target)]
    return torch.stack([part.flatten(2).sum(2) for part in maps], -1)


def size_error(counts):
    """How far the size of a class is off, as a share of its true size."""
    found, true = counts.double().unbind(-1)
    return torch.where(true > 0, (found - true).abs() / true, torch.nan)


@pytest.fixture
def size_score(monkeypatch):
    monkeypatch.setitem(COUNTERS, "sizes", count_sizes)
    row = Score(
        "size_error",
        "size error",
        "semantic",
        higher_is_better=False,
        of_images=Summed("sizes", size_error),
        compared=True,
        classes="size_error",
        class_label="size error",
        trained=True,
        curve=True,
    )
    SCORES.append(row)
    yield row
    SCORES.remove(row)


def test_adding_a_score_is_its_metric_and_one_row(size_score, lsseg, tmp_path):
    runs = {}
    for seed in (0, 1):
        runs[seed] = tmp_path / f"run{seed}"
        fit = ("fit", "--config", TINY, "--seed_everything", seed, "--trainer.default_root_dir", runs[seed])
        status, out, err = lsseg(*fit, "--test_after_fit", "true")
        assert status == 0, err
        assert "val/size_error" in out
        assert "error" in out.split("pixel accuracy")[1]  # the head of a column, broken to fit
    scores = json.loads((runs[0] / "test.json").read_text())["scores"]
    by_class = [value for name, value in scores.items() if name.startswith("size_error/")]
    assert scores["size_error"] == pytest.approx(sum(by_class) / len(by_class))
    variants = [{"name": name, "label": name, "paper": {}} for name in ("one", "two")]
    suite = {"name": "suite", "variants": variants, "baseline": "one", "subsets": {}}
    suite["runs"] = {"one": {"0": "run0"}, "two": {"0": "run1"}}
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    write_report(tmp_path, Console(quiet=True))
    table = (tmp_path / "results.csv").read_text().splitlines()[0].split(",")
    assert {"size_error", "size_error_difference", "size_error_difference_low"} <= set(table)
    assert "size error by class" in (tmp_path / "report.html").read_text()


def test_a_report_imports_the_package_that_adds_a_score(lsseg, tmp_path, monkeypatch):
    (tmp_path / "smpx").mkdir()
    (tmp_path / "smpx" / "nets.py").write_text("")
    (tmp_path / "smpx" / "tasks.py").write_text(
        "from lsseg.metrics.scores import SCORES, Score\nSCORES.append(Score('own_score', 'own score', 'semantic'))\n"
    )
    run = tmp_path / "suite" / "own-seed0"
    status, _, err = lsseg("fit", "--config", TINY, "--trainer.default_root_dir", run, "--test_after_fit", "true")
    assert status == 0, err
    # As if classes of that package had been trained; real ones would stay among this process's tasks.
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{config}own:\n- class_path: smpx.nets.Net\n- class_path: smpx.tasks.OwnTask\n")
    summary = json.loads((run / "test.json").read_text())
    summary["scores"]["own_score"] = 0.125
    (run / "test.json").write_text(json.dumps(summary))
    own = {"name": "own", "label": "own", "paper": {}}
    suite = {"name": "suite", "variants": [own], "baseline": "own", "subsets": {}, "runs": {"own": {"0": run.name}}}
    (tmp_path / "suite" / "suite.json").write_text(json.dumps(suite))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    kept = list(SCORES)
    try:
        for there in (True, False):
            if not there:
                (tmp_path / "smpx" / "tasks.py").unlink()
            status, out, err = lsseg("report", tmp_path / "suite")
            assert status == 0, err
            assert ("own_score" in (tmp_path / "suite" / "results.csv").read_text()) == there
            assert ("smpx.tasks cannot be imported, so scores that it adds are left out" in out) != there
            SCORES[:] = kept  # as in a process that has not imported it
            for module in ("smpx", "smpx.nets", "smpx.tasks"):
                sys.modules.pop(module, None)
    finally:
        SCORES[:] = kept


def test_names_are_unique():
    assert len({score.name for score in SCORES}) == len(SCORES)
