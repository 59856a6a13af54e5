import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lsseg.ablation.report import _mixed, _spread
from lsseg.ablation.results import Result, _means, variant_table


def test_a_mean_over_some_of_the_seeds_says_so():
    def result(seed, af):
        return Result("a", seed, Path(), {"kind": "instances", "scores": {"mask_ap": 0.5, "af1": af}}, np.array([]), {})

    row = {"seeds": 3, **_means([result(0, 0.4), result(1, float("nan")), result(2, 0.6)], "")}
    assert _spread(row, "af1") == "50.00 ± 14.14 (2 of 3 seeds)"
    assert _spread(row, "mask_ap") == "50.00 ± 0.00"
    table = pd.DataFrame([row, {"seeds": 3, "af1": 50.0}]).to_dict("records")
    assert _spread(table[1], "af1") == "50.00"


def test_rows_are_compared_with_baselines_of_their_own():
    def result(variant, right):
        overlap = np.tile([[right, 10, 10]] * 2, (3, 1, 1))
        counts = {"overlap": overlap, "boundary": np.tile([3, 4, 3, 4], (3, 3, 2, 1))}
        costs = {"scores": {}, "train_seconds_per_image": 1.0, "test_seconds_per_image": 1.0, "parameters": 5}
        return Result(variant, 0, Path(), costs, np.array(["x", "y", "z"]), counts)

    made = [result(name, right) for name, right in (("a", 5), ("b", 6), ("b_ls", 8))]
    rows = [{"name": n, "label": n, "paper": {}, "baseline": b} for n, b in (("a", None), ("b", "b"), ("b_ls", "b"))]
    table = variant_table(made, {"variants": rows, "baseline": "a", "subsets": {}}).set_index("variant")
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
    assert "by 3 versions of the code (aaaaaaaaaa, aaaaaaaaaa+, unknown)" in _mixed([one, edited, nothing])
