import pytest

from lsseg.ablation.spec import check_kinds, load_suite
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
    with pytest.raises(
        InputError, match="the model of variant 'a' is of kind semantic and that of 'b' of kind instances"
    ):
        check_kinds(path, suite)


def test_a_class_that_is_not_there_is_left_to_the_run(tmp_path):
    check_kinds(*suite_of(tmp_path, [{"name": "a", "set": {"model": "Nope"}}, {"name": "b"}]))


def test_a_paper_score_of_the_other_kind(tmp_path):
    path, suite = suite_of(tmp_path, [{"name": "a", "paper": {"mask_ap": 33.8}}])
    with pytest.raises(
        InputError, match=r"paper\.mask_ap of variant 'a' is not a score of these models; expected one of miou"
    ):
        check_kinds(path, suite)
