import json
from pathlib import Path

import numpy as np
import pytest

from lsseg.ablation.report import _mixed, _spread
from lsseg.ablation.results import (
    Description,
    Measured,
    Result,
    difference,
    load_description,
    measured,
    rows_of,
    variant_table,
)
from lsseg.ablation.spec import Variant
from lsseg.errors import InputError
from lsseg.metrics.scores import SCORES

AF1 = next(score for score in SCORES if score.name == "af1")
AP = next(score for score in SCORES if score.name == "mask_ap")


def test_a_mean_over_some_of_the_seeds_says_so(monkeypatch):
    found = [{"mask_ap": 50.0, "af1": af} for af in (40.0, float("nan"), 60.0)]
    monkeypatch.setattr(Result, "scores", lambda self: found[self.seed])
    results = [Result("a", seed, Path(), {}, np.array([]), {}) for seed in range(3)]
    part = measured(results, "a", "a", [])
    assert _spread(part, AF1, 3) == "50.00 ± 14.14 (2 of 3 seeds)"
    assert _spread(part, AP, 3) == "50.00 ± 0.00"
    assert _spread(measured(results[:1], "a", "a", []), AF1, 1) == "40.00"
    assert _spread(Measured({}, {}), AF1, 3) == "–"


def test_rows_are_compared_with_baselines_of_their_own():
    def result(variant, right):
        overlap = np.tile([[right, 10, 10]] * 2, (3, 1, 1))
        counts = {"overlap": overlap, "boundary": np.tile([3, 4, 3, 4], (3, 3, 2, 1))}
        costs = {"scores": {}, "train_seconds_per_image": 1.0, "test_seconds_per_image": 1.0, "parameters": 5}
        return Result(variant, 0, Path(), costs, np.array(["x", "y", "z"]), counts)

    made = [result(name, right) for name, right in (("a", 5), ("b", 6), ("b_ls", 8))]
    own = {"a": None, "b": "b", "b_ls": "b"}
    variants = tuple(Variant(name, name, (), {}, baseline=baseline) for name, baseline in own.items())
    rows = rows_of(made, Description("suite", variants, {}, "a", {}))
    assert [bool(row.all.differences) for row in rows] == [False, False, True]
    table = variant_table(rows).set_index("variant")
    assert table["miou_difference"].isna().tolist() == [True, True, False]
    assert table.loc["b_ls", "miou_difference"] == pytest.approx(table.loc["b_ls", "miou"] - table.loc["b", "miou"])


def test_rows_of_different_versions_are_said_to_be(tmp_path):
    def result(name, **noted):
        (tmp_path / name).mkdir()
        if noted:
            (tmp_path / name / "environment.json").write_text(json.dumps(noted))
        return Result(name, 0, tmp_path / name, {}, np.array([]), {})

    one, same = (result(name, git_commit="a" * 40, git_changed_files="") for name in ("one", "same"))
    edited = result("edited", git_commit="a" * 40, git_changed_files=" M file")
    nothing = result("nothing")
    assert [run.version for run in (one, edited, nothing)] == ["a" * 10, "a" * 10 + "+", "unknown"]
    assert _mixed([one, same]) == ""
    assert "3 versions of the code (aaaaaaaaaa, aaaaaaaaaa+, unknown)" in _mixed([one, edited, nothing])


GOOD = {
    "name": "s",
    "baseline": "a",
    "variants": [{"name": "a", "label": "A", "paper": {"miou": 70}}],
    "runs": {"a": {"0": "a-seed0"}},
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"baseline": "b"},
        {"variants": []},
        {"variants": [{"name": "a", "label": None}]},
        {"variants": [{"name": "a", "label": "A", "paper": [1]}]},
        {"variants": [{"name": "a", "label": "A", "baseline": "b"}]},
        {"runs": {"a": {"first": "a-seed0"}}},
        {"runs": {"b": {"0": "b-seed0"}}},
        {"runs": [1]},
        {"subsets": {"dark": 3}},
    ],
    ids=str,
)
def test_a_damaged_description_is_named(tmp_path, wrong):
    (tmp_path / "suite.json").write_text(json.dumps(GOOD))
    assert load_description(tmp_path).variants[0].paper == {"miou": 70}  # what older versions lacked is not asked for
    (tmp_path / "suite.json").write_text(json.dumps(GOOD | wrong))
    with pytest.raises(InputError, match=r"suite\.json is not the description of a suite; start `lsseg ablate` again"):
        load_description(tmp_path)


def test_runs_on_other_classes_are_not_compared():
    counts = {"overlap": np.ones((2, 2, 3)), "boundary": np.ones((2, 3, 2, 4))}
    names = np.array(["x", "y"])
    made = [Result(v, 0, Path(v), {"scores": {}, "classes": [v, "z"]}, names, counts) for v in ("a", "b")]
    miou = next(score for score in SCORES if score.name == "miou")
    with pytest.raises(InputError, match="a and b were tested on different classes"):
        difference(made, "a", "b", miou)
