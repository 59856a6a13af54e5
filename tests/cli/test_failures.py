"""What a library raises: one line on the screen, the traceback in a file, nothing half-done left."""

import json
from pathlib import Path

import pytest

from lsseg.cli.resume import check_intervals
from lsseg.errors import ArgumentError
from lsseg.failures import Place, described, key_of, located
from lsseg.files import write_whole
from lsseg.tasks import SegmentationTask

TINY = Path(__file__).with_name("tiny.yaml")
LIBRARY = """
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import nn

class Broken(Exception):
    pass

class OfALogger(CSVLogger):
    def __init__(self, save_dir: str = ".", missing: bool = True):
        raise ModuleNotFoundError("pip install\\n  what-is-missing")

class OfANetwork(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        raise Broken("no such layer")

class OfACallback(Callback):
    def __init__(self, hook: str):
        setattr(self, hook, self.fail)

    def fail(self, *arguments, **options):
        {}["it"]
"""


@pytest.fixture
def fails(lsseg, tmp_path, monkeypatch):
    """Runs a training that must fail in one line, and gives it."""
    (tmp_path / "library_here.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*arguments):
        status, _, err = lsseg("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *arguments)
        assert status == 1
        assert "Traceback" not in err
        assert err.count("\n") == 1, err
        return err.strip().removeprefix("lsseg: error: ")

    return run


def callback(name, **options):
    return f"--trainer.callbacks={json.dumps([{'class_path': name, 'init_args': options}])}"


SETUP = {
    "--trainer.logger=CometLogger": ("trainer.logger: ModuleNotFoundError: ", "Requirement 'comet-ml"),
    "--trainer.logger=library_here.OfALogger": ("trainer.logger: ", "pip install what-is-missing"),
    "--model.network=library_here.OfANetwork": ("model.network: Broken: no such layer", ""),
    callback("library_here.OfACallback", hook="setup"): ("trainer.callbacks: KeyError: 'it'", ""),
    callback("library_here.OfACallback", hook="on_fit_start"): ("trainer.callbacks: KeyError: 'it'", ""),
}


@pytest.mark.parametrize("option", SETUP)
def test_what_fails_before_training_leaves_its_traceback_and_nothing_else(fails, tmp_path, option):
    log = tmp_path / "run" / "log.txt"
    said, (start, reason) = fails(option), SETUP[option]
    assert said.startswith(start)
    assert reason in said
    assert said.endswith(f"(the traceback is in {log})")
    assert "Traceback (most recent call last)" in log.read_text()
    assert [path.name for path in log.parent.iterdir()] == ["log.txt"]
    fails(option)  # the folder is as good as new


TRAINING = {
    callback("library_here.OfACallback", hook="on_train_batch_end"): "trainer.callbacks: KeyError: 'it'",
    callback("library_here.OfACallback", hook="on_validation_start"): "trainer.callbacks: KeyError: 'it'",
}


@pytest.mark.parametrize("option", TRAINING)
def test_what_fails_in_training_is_told_beside_the_log(fails, tmp_path, option):
    said = fails(option)
    assert said.startswith(TRAINING[option])
    assert f"the traceback is in {tmp_path / 'run' / 'log.txt'}" in said
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


MONITORS = {
    callback("EarlyStopping", monitor="val/miuo"): "EarlyStopping has monitor 'val/miuo', which is not a validation",
    callback("ModelCheckpoint", monitor="miou"): "did you mean val/miou?",
    callback("EarlyStopping", monitor="val/mask_ap"): "the scores are val/miou, val/boundary_f1_1px",
}


@pytest.mark.parametrize("option", MONITORS)
def test_a_monitor_that_no_validation_has_is_refused_before_training(lsseg, tmp_path, option):
    run = tmp_path / "run"
    status, _, err = lsseg("fit", "--config", TINY, "--trainer.default_root_dir", run, option)
    assert (status, MONITORS[option] in err, run.exists()) == (1, True, False), err


@pytest.mark.parametrize(
    ("name", "monitor"),
    [
        ("EarlyStopping", "val/loss"),
        ("EarlyStopping", "val/boundary_f1_2px"),
        ("EarlyStopping", "train/loss"),
        ("ModelCheckpoint", "step"),
    ],
)
def test_a_monitor_that_is_there_is_taken(lsseg, tmp_path, name, monitor):
    option = callback(name, monitor=monitor)
    status, _, err = lsseg("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", option)
    assert status == 0, err


def test_debug_shows_the_traceback(lsseg, tmp_path):
    run = ("--trainer.default_root_dir", tmp_path / "run")
    status, _, err = lsseg("fit", "--debug", "--config", TINY, *run, "--trainer.logger=CometLogger")
    assert status == 1
    assert "Traceback (most recent call last)" in err
    assert err.strip().splitlines()[-1].startswith("lsseg: error: trainer.logger: ")
    status, _, err = lsseg("export", "nowhere", "a.pt2", "--size", 8, 8, "--debug")
    assert (status, "Traceback" in err) == (1, True)


def test_without_a_folder_the_traceback_is_in_a_file_that_is_named(lsseg, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("lsseg.cli.export.export", lambda *_: {}["it"])
    status, _, err = lsseg("export", "run", "a.pt2", "--size", 8, 8)
    (log,) = tmp_path.glob("lsseg-*.log.txt")
    assert (status, err) == (1, f"lsseg: error: KeyError: 'it' (the traceback is in {log})\n")
    assert "Traceback" in log.read_text()


def test_a_failure_behind_finished_steps_keeps_what_they_gave(fails, tmp_path, monkeypatch):
    step = SegmentationTask.training_step

    def fail(self, *arguments):
        if self.global_step == 3:
            raise RuntimeError("Caught it.\n\nTraceback (most recent call last):\n  File 'x'\nOSError: torn")
        return step(self, *arguments)

    monkeypatch.setattr(SegmentationTask, "training_step", fail)
    assert fails().startswith("model: OSError: torn (the traceback is in ")
    assert (tmp_path / "run" / "last.ckpt").is_file()


STRATEGIES = {
    "ddp_spawn": "ddp_spawn",
    "ddp_notebook_find_unused_parameters_true": "ddp_notebook_find_unused_parameters_true",
    '{"class_path": "pytorch_lightning.strategies.DDPStrategy", "init_args": {"start_method": "fork"}}': "with start",
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_processes_that_are_copies_are_refused(fails, tmp_path, strategy):
    assert fails(f"--trainer.strategy={strategy}").startswith(f"trainer.strategy {STRATEGIES[strategy]}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_wandb_online_without_a_login(fails, tmp_path, monkeypatch, how):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "online")
    said = fails(f"--wandb.mode={'online' if how == 'option' else 'auto'}")
    assert said.startswith("wandb.mode online needs a login: run `wandb login` or set WANDB_API_KEY")
    assert not (tmp_path / "run").exists()


def test_images_that_are_too_small_for_the_architecture(fails):
    said = fails("--model.network.architecture=pan", "--model.network.decoder=null")
    assert said.startswith("model.network.architecture PAN cannot take an image of 64×64, which is too small for it")


def test_long_messages_are_cut():
    assert len(described(RuntimeError("word " * 1000))) < 520
    assert described(RuntimeError()) == "RuntimeError"
    assert key_of(RuntimeError("no"), None) is None


class Outer:
    def __init__(self, inner=None):
        self.inner = inner and inner()
        if inner is None:
            raise ArgumentError("weight must not be negative, not -1")


class Inner(Outer):
    """Its base is named in the configuration, too."""


@pytest.mark.parametrize(("made", "key"), [(Inner, "model.criterion.loss"), (Outer, "model.criterion")])
def test_the_key_is_that_of_the_class_itself_and_not_of_its_base(made, key):
    inner = {"class_path": "mine.Inner", "init_args": {"weight": -1}}
    config = {"model": {"criterion": {"class_path": "mine.Outer", "init_args": {"loss": inner}}}}
    with pytest.raises(ArgumentError) as error:
        Outer(made) if made is Inner else made()
    said = str(located(error.value, Place(config=config)))
    assert said == f"{key}.weight must not be negative, not -1"


class Weighted:
    def __init__(self, weight=1.0):
        self.weight = weight
        self._check()

    def _check(self):
        if self.weight < 0:
            raise ArgumentError(f"weight must not be negative, not {self.weight}")


@pytest.mark.parametrize(("weights", "key"), [((-1.0, 2.0), "model.first"), ((2.0, -1.0), "model.second")])
def test_of_two_keys_of_one_class_the_one_is_named_that_has_the_wrong_value(weights, key):
    classes = [{"class_path": "mine.Weighted", "init_args": {"weight": weight}} for weight in weights]
    config = {"model": dict(zip(("first", "second"), classes, strict=True))}
    with pytest.raises(ArgumentError) as error:
        Weighted(-1.0)
    assert str(located(error.value, Place(config=config))) == f"{key}.weight must not be negative, not -1.0"


def test_an_interrupt_while_python_still_imports(lsseg, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lsseg.cli.importlib.import_module", interrupted)
        assert lsseg("refine", "a", "b")[::2] == (130, "lsseg: interrupted\n")


def test_a_full_disk_is_told_with_the_files_name_and_leaves_nothing(tmp_path):
    def write(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device.*new/a\.png"):
        write_whole(write, tmp_path / "new" / "a.png")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_validation_that_never_comes_is_told():
    trainer = {"val_check_interval": 100, "max_steps": 2, "accumulate_grad_batches": None}
    with pytest.warns(UserWarning, match="val_check_interval 100 is longer than the training of 2 batches"):
        check_intervals({**trainer, "check_val_every_n_epoch": None, "fast_dev_run": False})
