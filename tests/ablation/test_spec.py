from datetime import date

import pytest
import yaml

from lsseg.ablation.spec import describe, expand, load_suite
from lsseg.errors import InputError


@pytest.fixture
def suite(tmp_path):
    """Writes a suite's file beside a base configuration and reads it."""
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 3}\n")

    def read(**content):
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({"base": ["base.yaml"], **content}))
        return load_suite(path)

    return read


def test_a_variant_may_be_compared_with_another_row(suite):
    rows = [{"name": "a"}, {"name": "b", "baseline": "b"}, {"name": "b_ls", "baseline": "b"}]
    assert [variant.baseline for variant in suite(variants=rows).variants] == [None, "b", "b"]
    gridded = suite(variants=rows, grid={"model.lr": [0.1, 0.2]}).variants
    assert [variant.baseline for variant in gridded[-2:]] == ["b,lr=0.1", "b,lr=0.2"]
    with pytest.raises(InputError, match="baseline 'c' of variant 'b' is none of a, b"):
        suite(variants=[{"name": "a"}, {"name": "b", "baseline": "c"}])


def test_variants_times_grid_times_seeds(suite, tmp_path):
    made = suite(
        seeds=[0, 3],
        set={"trainer.max_steps": 5, "model.lr": 1},
        variants=[
            {"name": "ce", "label": "CE"},
            {"name": "ls", "set": {"model": "LevelSetLossTask"}, "paper": {"miou": 76.5}},
        ],
        grid={"model.lr": [0.1, 0.01]},
    )
    runs = expand(made)
    names = "ce,lr=0.1-seed0 ce,lr=0.01-seed0 ls,lr=0.1-seed0 ls,lr=0.01-seed0"
    assert " ".join(run.name for run in runs[:4]) == names
    assert len({run.name for run in runs}) == 8
    assert made.baseline == "ce,lr=0.1"
    assert runs[2].variant.paper == {"miou": 76.5}
    assert runs[0].variant.label == "CE, lr=0.1"
    arguments = runs[3].arguments(tmp_path / "run")
    # A class comes before its arguments, and the grid wins over what is set for all.
    model = ["--model=LevelSetLossTask", "--model.lr=0.01", "--trainer.max_steps=5"]
    assert arguments[:5] == ["fit", f"--config={tmp_path / 'base.yaml'}", *model]


def test_cited_rows_are_not_run(suite):
    variants = [{"name": "crf", "cite": True, "paper": {"miou": 71.2}}, {"name": "ce"}]
    made = suite(seeds=[0, 1], variants=variants)
    assert [run.name for run in expand(made)] == ["ce-seed0", "ce-seed1"]
    assert made.baseline == "ce"
    assert describe(made)["runs"].keys() == {"ce"}
    assert made.variants[0].cite


def test_further_configurations_come_after_those_of_the_suite(suite, tmp_path):
    suite(variants=[{"name": "ce", "config": "base.yaml", "set": {"model.lr": 1}}])
    small = tmp_path / "small.yaml"
    small.write_text("trainer: {max_steps: 1}\n")
    made = load_suite(tmp_path / "suite.yaml", (small,))
    assert made.name == "suite-small"
    arguments = expand(made)[0].arguments(tmp_path / "run")
    configs = [argument for argument in arguments if argument.startswith("--config=")]
    assert configs[-1] == f"--config={small}"
    assert arguments.index("--model.lr=1") > arguments.index(configs[-1])
    assert expand(made)[0].fingerprint()["configs"][-1] == {"trainer": {"max_steps": 1}}


def test_grids_over_lists_have_readable_names(suite):
    made = suite(grid={"data.crop_size": [[64, 64], [32, 48]], "model.network.encoder_weights": [None]})
    names = [variant.name for variant in made.variants]
    assert names == ["crop_size=64x64,encoder_weights=null", "crop_size=32x48,encoder_weights=null"]


def test_values_survive_the_command_line(suite, tmp_path):
    values = {"a": None, "b": True, "c": [1, 2], "d": "text", "e": {"f": 0.5}}
    run = expand(suite(variants=[{"name": "x", "set": values}]))[0]
    flags = dict(flag[2:].split("=", 1) for flag in run.arguments(tmp_path) if flag[2:].split("=")[0] in values)
    assert {key: yaml.safe_load(text) for key, text in flags.items()} == values


def test_what_starts_from_another_run_comes_behind_those_that_wait_for_nothing(suite):
    variants = [{"name": "a"}, {"name": "b", "start": "a"}, {"name": "c", "start": "b"}, {"name": "d"}]
    variants.append({"name": "e", "start": "a"})
    names = [run.name for run in expand(suite(variants=variants, seeds=[0, 1]))]
    assert names == [f"{name}-seed{seed}" for seed in (0, 1) for name in "adbec"]


def test_the_fingerprint_holds_that_of_its_start(suite, tmp_path):
    variants = [{"name": "x", "set": {"model.lr": 1}}, {"name": "y", "start": "x"}]
    before = expand(suite(variants=variants))[1]
    assert (
        before.arguments(tmp_path / "runs" / "y-seed0").count(f"--model.start={tmp_path}/runs/x-seed0/last.ckpt") == 1
    )
    variants[0]["set"]["model.lr"] = 2
    assert expand(suite(variants=variants))[1].fingerprint() != before.fingerprint()


def test_the_fingerprint_holds_the_contents_of_the_files(suite, tmp_path):
    made = suite(variants=[{"name": "x"}])
    before = expand(made)[0].fingerprint()
    (tmp_path / "base.yaml").write_text("trainer: {max_steps: 4}\n")
    assert expand(made)[0].fingerprint() != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "two variants have the same name 'a'"),
        ({"grid": {"model.lr": [0.1, 0.10]}}, "two variants have the same name 'lr=0.1'"),
        (
            {"variants": [{"name": "a", "set": {"trainer.max_steps": 0}}, {"name": "b", "start": "a"}]},
            "'b' cannot start from 'a', which only tests",
        ),
        ({"variants": [{"name": "a"}], "seeds": [1, 1]}, "a seed is given twice"),
        ({"variants": [{"name": "a"}], "seeds": "all"}, "seeds must be a list of whole numbers"),
        ({"variants": [{"name": "a"}], "baseline": "b"}, "baseline 'b' is none of the variants a"),
        ({"variants": [{"name": "a", "sett": {}}]}, "unknown key variants.a.sett"),
        ({"variants": [{"name": "a"}], "seed": [0]}, "unknown key seed; expected base, baseline"),
        ({"variants": [{"name": "a", "cite": True}]}, "nothing to run"),
        ({"variants": [{"name": "a", "cite": "yes"}]}, "cite of variant 'a' must be true or false"),
        ({"variants": [{"name": "a", "cite": True}, {"name": "b"}], "baseline": "a"}, "baseline 'a'"),
        ({"variants": [{"name": "a", "config": "nope.yaml"}]}, "nope.yaml does not exist"),
        ({"variants": [{"name": "a/b"}]}, "the name 'a/b' must be made of letters"),
        ({"variants": [{"label": "a"}]}, "variants must be a list of mappings with a name"),
        ({}, "variants must be a list of mappings with a name (or give a grid)"),
        ({"base": 3, "variants": [{"name": "a"}]}, "base must be a file or a list of files, not 3"),
        (
            {"variants": [{"name": "a", "config": [1]}]},
            "config of variant 'a' must be a text or a list of texts",
        ),
        ({"variants": [{"name": "a", "set": {3: 4}}]}, "set must be a mapping of names"),
        (
            {"variants": [{"name": "a", "paper": {"miou": "76"}}]},
            "paper.miou is '76', but must be a number for one of miou",
        ),
        (
            {"variants": [{"name": "a", "paper": {"dice": 76}}]},
            "paper.dice is 76, but must be a number for one of miou",
        ),
        ({"variants": [{"name": "a"}], "subsets": {"n": 3}}, "subsets must give each name a pattern"),
        (
            {"variants": [{"name": "a", "start": "b"}, {"name": "b"}]},
            "start 'b' of variant 'a' must be an earlier variant",
        ),
        (
            {"variants": [{"name": "a"}, {"name": "b", "start": "a", "cite": True}]},
            "must not have cite or set model.start",
        ),
        ({"grid": {"model.lr": 0.1}}, "grid.model.lr must be a list of values"),
        ({"variants": [{"name": "a", "set": [1]}]}, "set must be a mapping"),
        (
            {"variants": [{"name": "a", "set": {"seed_everything": 5}}]},
            "must not have seed_everything: the suite's seeds set it",
        ),
        ({"variants": [{"name": "a"}], "set": {"trainer.default_root_dir": "x"}}, "it is always the run folder"),
        ({"variants": [{"name": "a", "set": {"model.lr": date(2020, 1, 1)}}]}, "model.lr of variant 'a' is datetime"),
    ],
)
def test_bad_suites(suite, content, message):
    with pytest.raises(InputError) as error:
        suite(**content)
    assert message in str(error.value)
    assert "suite.yaml" in str(error.value)


def test_files_that_are_no_suite(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_suite(tmp_path / "nope.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"broken.yaml is not YAML"):
        load_suite(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"list.yaml must be a mapping with keys among base"):
        load_suite(tmp_path / "list.yaml")
