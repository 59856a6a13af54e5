from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lsseg.ablation.kinds import check_kinds
from lsseg.ablation.report import _spread
from lsseg.ablation.results import InstanceResult, _means
from lsseg.ablation.spec import load_suite
from lsseg.errors import InputError


def suite_of(tmp_path, variants):
    import yaml

    path = tmp_path / "suite.yaml"
    (tmp_path / "base.yaml").write_text("model: {class_path: SegmentationTask}\n")
    (tmp_path / "boxes.yaml").write_text("model: {class_path: lsseg.tasks.LevelSetRCNNTask}\n")
    path.write_text(yaml.safe_dump({"base": ["base.yaml"], "variants": variants}))
    return path, load_suite(path)


def test_one_kind(tmp_path):
    check_kinds(
        *suite_of(tmp_path, [{"name": "a"}, {"name": "b", "set": {"model": "DMLSTask"}}, {"name": "c", "cite": True}])
    )


@pytest.mark.parametrize("change", [{"set": {"model": "LevelSetRCNNTask"}}, {"config": "boxes.yaml"}])
def test_two_kinds(tmp_path, change):
    path, suite = suite_of(tmp_path, [{"name": "a"}, {"name": "b", **change}])
    with pytest.raises(InputError, match="the model of variant 'a' is semantic, that of 'b' instances"):
        check_kinds(path, suite)


def test_a_class_that_is_not_there_is_left_to_the_run(tmp_path):
    check_kinds(*suite_of(tmp_path, [{"name": "a", "set": {"model": "Nope"}}, {"name": "b"}]))


def test_a_paper_score_of_the_other_kind(tmp_path):
    path, suite = suite_of(tmp_path, [{"name": "a", "paper": {"mask_ap": 33.8}}])
    with pytest.raises(InputError, match=r"paper\.mask_ap of variant 'a' is no score here; expected miou"):
        check_kinds(path, suite)


def test_a_mean_over_some_of_the_seeds_says_so():
    def result(seed, af):
        return InstanceResult("a", seed, Path(), {"scores": {"mask_ap": 0.5, "af1": af}}, np.array([]), {})

    row = {"seeds": 3, **_means([result(0, 0.4), result(1, float("nan")), result(2, 0.6)], "")}
    assert _spread(row, "af1") == "50.00 ± 14.14 (2 of 3 seeds)"
    assert _spread(row, "mask_ap") == "50.00 ± 0.00"
    table = pd.DataFrame([row, {"seeds": 3, "af1": 50.0}]).to_dict("records")
    assert _spread(table[1], "af1") == "50.00"
