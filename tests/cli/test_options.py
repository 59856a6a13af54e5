"""Keys and options by their whole names; of what is unknown, the nearest is named."""

from pathlib import Path

import pytest
import yaml

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--trainer.max_step=3", "--trainer.max_steps"),
        ("--trainer.max_e=3", "--trainer.max_epochs"),
        ("--trainer.default_root=x", "--trainer.default_root_dir"),
        ("--trianer.max_steps=3", "--trainer.max_steps"),
        ("--panels.image=3", "--panels.images"),
        ("--gal=3", "--gallery"),
        ("--seed=3", "--seed_everything"),
        ("--ckpt=x", "--ckpt_path"),
        ("--modell=x", "--model"),
        ("--model.weight_deca=0", "weight_decay"),
        ("--model.network.architectur=fpn", "architecture"),
        ("--data.batch=3", "batch_size"),
    ],
)
def test_an_abbreviated_or_misspelt_option_is_refused(lsseg, tmp_path, option, hint):
    status, _, err = lsseg("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", option)
    assert (status, err.count("\n")) == (1, 1), err
    assert err.rstrip().endswith(f"; did you mean {hint}?")
    assert not (tmp_path / "run").exists()


def test_the_configuration_itself_is_no_exception(lsseg):
    status, _, err = lsseg("fit", "--conf", TINY)
    assert (status, err.rstrip().endswith("did you mean --config?")) == (1, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {class_path: LevelSetLossTask, init_args: {level_set_wieght: 3}}", "level_set_weight"),
        ("model: {init_args: {network: {init_args: {encoder_weight: null}}}}", "encoder_weights"),
        ("trainer: {max_step: 3}", "trainer.max_steps"),
        ("trianer: {max_steps: 3}", "trainer.max_steps"),
        ("wandb: {projekt: 3}", "wandb.project"),
        ("galery: 3", "gallery"),
        ("data: {init_args: {batchsize: 3}}", "batch_size"),
        ("trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: a}}]}", "monitor"),
        ("model: {class_path: SegmentationTask, init_arg: {lr: 3}}", "init_args"),
        ("data: {class_pth: SyntheticShapes, init_args: {}}", "class_path"),
    ],
)
def test_a_misspelt_key_of_a_file(lsseg, tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    status, _, err = lsseg("fit", "--config", TINY, "--config", tmp_path / "mine.yaml")
    assert (status, err.count("\n")) == (1, 1), err
    assert err.rstrip().endswith(f"; did you mean {message}?")


def test_a_key_like_no_other_gets_no_guess(lsseg):
    status, _, err = lsseg("fit", "--config", TINY, "--model.xyzzy=3")
    assert (status, err) == (1, "lsseg: error: model: Option 'xyzzy' is not accepted\n")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("fitt",), "fit"),
        (("ablate", "x.yaml", "--dry"), "--dry-run"),
        (("ablate", "x.yaml", "--job", "3"), "--jobs"),
        (("run", "x.yaml", "--point", "{}", "--roo", "x"), "--root"),
        (("bench", "--repeat", "3"), "--repeats"),
        (("bench", "dmls", "--outputt", "x"), "--output"),
        (("export", "a", "b", "--siz", "3"), "--size"),
    ],
)
def test_the_other_commands_take_no_abbreviation_either(lsseg, capfd, command, hint):
    with pytest.raises(SystemExit) as ended:
        lsseg(*command)
    err = capfd.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1), err
    assert err.rstrip().endswith(f"; did you mean {hint}?")


def test_what_a_saved_configuration_holds_is_accepted(trained, lsseg, tmp_path):
    content = yaml.safe_load((trained / "config.yaml").read_text())
    assert content["model"]["class_path"]
    test = ("test", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt")
    assert lsseg(*test, "--trainer.default_root_dir", tmp_path / "again")[0] == 0


def test_commands_are_completed_in_bash(lsseg):
    import subprocess

    status, script, _ = lsseg("--completion", "bash")
    assert status == 0
    ask = 'COMP_WORDS=(lsseg re); COMP_CWORD=1; _lsseg; echo "${COMPREPLY[*]}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
    assert done.stdout.split() == ["refine", "report"]


def test_the_help_of_a_class_names_this_projects_classes_only(lsseg, capfd):
    with pytest.raises(SystemExit):
        lsseg("fit", "--model.help", "SegmentationTask")
    said = capfd.readouterr().out
    assert "lsseg.models.SmpNet" in " ".join(said.split())
    assert "torch.nn.Linear" not in said
    assert len(said.splitlines()) < 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "DMLSTask", "--model.network.network", "SmpNet"),
            "model.network: Option 'network' is not accepted; it belongs to a class, which must be named first",
        ),
        (("--model", "DMLSTsk"), "model: 'DMLSTsk' is not a known class; did you mean DMLSTask?"),
        (("--model.network", "my.Net"), "model.network: Problem with given class_path 'my.Net': No module named 'my'"),
    ],
)
def test_classes_that_are_not_named_right(lsseg, arguments, message):
    status, _, err = lsseg("fit", "--data", "SyntheticShapes", *arguments)
    assert (status, err.splitlines()[-1]) == (1, f"lsseg: error: {message}")
