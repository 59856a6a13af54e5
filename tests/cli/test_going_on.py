"""Going on with a run: what may change, what may not, and where it goes; and the classes that a checkpoint is of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lsseg.callbacks import SavePredictions
from lsseg.errors import InputError
from lsseg.files import read_jsonl
from lsseg.load import load_run
from lsseg.tasks import SegmentationTask
from lsseg.tasks.start import refuse_other_classes

TINY = Path(__file__).with_name("tiny.yaml")
NETWORK = yaml.safe_load(TINY.read_text())["model"]["init_args"]["network"]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(path, change):
    """Edit a checkpoint."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


FIXED = {
    "--model.lr=0.02": "model.lr (0.01, not 0.02)",
    "--model.weight_decay=0.5": "model.weight_decay (0.0001, not 0.5)",
    "--model.momentum=0.5": "model.momentum (0.9, not 0.5)",
    "--model.optimizer=adamw": "model.optimizer (sgd, not adamw)",
    "--model.poly_power=0": "model.poly_power (0.9, not 0.0)",
    "--model.lr_milestones=[0.5]": "model.lr_milestones (null, not [0.5])",
    "--model.lr_warmup=0.5": "model.lr_warmup (0.0, not 0.5)",
    "--model.new_layers=10": "model.new_layers (1.0, not 10.0)",
    "--model.scale_lr=1": "model.scale_lr (0.01, not 1.0)",
    "--model.network.encoder_name=resnet18": "model.network.encoder_name (tu-test_resnet.r160_in1k, not resnet18)",
    "--model.network=lsseg.models.FCN": "model.network (SmpNet, not FCN)",
}


@pytest.mark.parametrize("version", ["now", "without its configuration"])
def test_what_the_checkpoint_would_overrule_is_refused_by_key(trained, lsseg, version):
    if version != "now":  # then the file beside it says
        changed(trained / "last.ckpt", lambda content: content.pop("model"))
    before = files_of(trained)
    for option, said in FIXED.items():
        fit = ("fit", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt", option)
        status, _, err = lsseg(*fit, "--trainer.default_root_dir", trained)
        assert (status, err.count("\n")) == (1, 1), err
        assert err.startswith(f"lsseg: error: a resumed run must keep {said}: leave it unchanged, or start "), err
    assert files_of(trained) == before


def test_all_such_keys_are_named_at_once(trained, lsseg):
    fit = ("fit", "--config", TINY, "--ckpt_path", trained / "last.ckpt", "--model.lr=0.02", "--model.weight_decay=0.5")
    status, _, err = lsseg(*fit)
    assert status == 1
    assert "must keep model.lr (0.01, not 0.02), model.weight_decay (0.0001, not 0.5): leave them unchanged" in err
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_an_adamw_run_does_not_go_on_with_sgd(lsseg, tmp_path):
    run = ("--config", TINY, "--trainer.default_root_dir", tmp_path / "run")
    assert lsseg("fit", *run, "--model.optimizer=adamw")[0] == 0
    shutil.move(tmp_path / "run" / "last.ckpt", tmp_path / "moved.ckpt")
    going_on = ("--ckpt_path", tmp_path / "moved.ckpt", "--model.optimizer=sgd")
    for changes in ([], ["model"]):  # the second as an older version has saved it, and no configuration beside it
        changed(tmp_path / "moved.ckpt", lambda content, keys=changes: [content.pop(key) for key in keys])
        status, _, err = lsseg("fit", "--config", TINY, *going_on)
        assert (status, err.count("\n"), "model.optimizer (adamw, not sgd): leave it" in err) == (1, 1, True), err


def test_the_optimizers_state_alone_tells_another_rate(trained, lsseg, tmp_path):
    shutil.move(trained / "last.ckpt", tmp_path / "moved.ckpt")
    changed(tmp_path / "moved.ckpt", lambda content: content.pop("model"))
    status, _, err = lsseg("fit", "--config", TINY, "--ckpt_path", tmp_path / "moved.ckpt", "--model.lr=0.02")
    assert (status, "must keep model.lr (0.01, not 0.02)" in err) == (1, True), err


def test_weights_of_classes_in_the_checkpoint_are_not_given_anew(lsseg, tmp_path):
    network = {"class_path": "DMLS", "init_args": {"steps": 2, "network": NETWORK}}
    model = ("--model=DMLSTask", f"--model.network={json.dumps(network)}", "--model.class_weights=[1,2,3,4,5,6,7]")
    run = ("--config", TINY, *model, "--trainer.default_root_dir", tmp_path / "run")
    status, _, err = lsseg("fit", *run)
    assert status == 0, err
    going_on = ("fit", *run, "--ckpt_path", tmp_path / "run" / "last.ckpt")
    status, _, err = lsseg(*going_on, "--model.class_weights=[7,6,5,4,3,2,1]")
    assert (status, "must keep model.class_weights ([1" in err) == (1, True), err
    status, _, err = lsseg(*going_on, "--model.network.steps=3")
    assert (status, "must keep model.network.steps (2, not 3)" in err) == (1, True), err
    # What is a weight of the loss, is applied.
    status, _, err = lsseg(*going_on, "--model.boundary_weight=1", "--trainer.max_steps=6")
    assert status == 0, err


def test_what_may_change_is_applied_and_recorded(trained, lsseg):
    changes = ("--trainer.max_steps=8", "--data.batch_size=4", "--data.num_workers=1", "--trainer.log_every_n_steps=2")
    going_on = ("fit", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt")
    status, out, err = lsseg(*going_on, *changes, "--model.test_flip=true", "--test_after_fit=false")
    assert status == 0, err
    assert f"the run is in {trained}" in out  # not in a folder of its own
    (recorded,) = trained.glob("config-*.yaml")
    content = yaml.safe_load(recorded.read_text())
    assert (content["trainer"]["max_steps"], content["data"]["init_args"]["batch_size"]) == (8, 4)
    assert content["model"]["init_args"]["test_flip"] is True
    assert torch.load(trained / "last.ckpt", weights_only=True)["global_step"] == 8


@pytest.mark.parametrize("old", [False, True])
def test_a_longer_training_has_the_longer_trainings_rate(trained, lsseg, monkeypatch, old):
    if old:  # as torch's own schedule was saved

        def change(content):
            content["lr_schedulers"] = [{"total_iters": 4, "power": 0.9, "base_lrs": [0.01], "last_epoch": 4}]
            content["optimizer_states"][0]["param_groups"][0]["lr"] = 0.0

        changed(trained / "last.ckpt", change)
    rates, step = [], SegmentationTask.training_step

    def note(self, *arguments):
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(SegmentationTask, "training_step", note)
    fit = ("fit", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt", "--trainer.max_steps", 8)
    status, _, err = lsseg(*fit)
    assert status == 0, err
    assert rates == pytest.approx([0.01 * (1 - k / 8) ** 0.9 for k in range(4, 8)])


def test_last_ckpt_is_there_from_the_first_validation_on(trained, lsseg, tmp_path, monkeypatch):
    """And a run goes on from it as if it had not stopped."""
    step, folder = SegmentationTask.training_step, tmp_path / "stopped"

    def stop(self, batch, batch_idx):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    fit = ("fit", "--config", TINY, "--trainer.default_root_dir", folder)
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", stop)
        with pytest.raises(SystemExit):
            lsseg(*fit)
    content = torch.load(folder / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert content["callbacks"]["BestCheckpoint"]["best_model_score"] is not None
    status, _, err = lsseg(*fit, "--ckpt_path", folder / "last.ckpt")
    assert status == 0, err
    states = [torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (trained, folder)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rows = [row["val/miou"] for row in read_jsonl(folder / "metrics.jsonl") if "val/miou" in row]
    assert rows == [row["val/miou"] for row in read_jsonl(trained / "metrics.jsonl") if "val/miou" in row]


def test_going_on_with_another_configuration_is_a_run_of_its_own(trained, lsseg):
    fit = ("fit", "--config", TINY, "--ckpt_path", trained / "last.ckpt", "--trainer.max_steps", 5)
    status, out, err = lsseg(*fit, "--trainer.val_check_interval", 1)
    assert status == 0, err
    assert "the run is in runs/tiny-" in out


def test_a_second_checkpoint_on_the_same_score(lsseg, tmp_path):
    mine = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/miou", "mode": "max", "save_top_k": 2}}
    run = ("--trainer.default_root_dir", tmp_path / "run", "--trainer.callbacks", json.dumps([mine]))
    status, _, err = lsseg("fit", "--config", TINY, *run)
    assert status == 0, err
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert len(list((tmp_path / "run").rglob("epoch=*.ckpt"))) == 2
    status, _, err = lsseg(
        "fit", "--config", TINY, *run, "--ckpt_path", tmp_path / "run" / "last.ckpt", "--trainer.max_steps", 6
    )
    assert status == 0, err


@pytest.mark.parametrize("options", [{"filename": "best"}, {"filename": "last"}, {"save_last": True}])
def test_a_checkpoint_of_the_same_file_is_refused(lsseg, tmp_path, options):
    options = {"monitor": "val/miou", "mode": "max", "dirpath": str(tmp_path / "run"), **options}
    mine = {"class_path": "ModelCheckpoint", "init_args": options}
    run = ("--trainer.default_root_dir", tmp_path / "run", "--trainer.callbacks", json.dumps([mine]))
    status, _, err = lsseg("fit", "--config", TINY, *run)
    assert (status, err.count("\n")) == (1, 1), err
    assert "trainer.callbacks: a ModelCheckpoint writes" in err
    assert not (tmp_path / "run").exists()


def test_the_best_of_an_older_version_stays_the_best(trained, lsseg):
    def older(content):
        state = content["callbacks"].pop("BestCheckpoint")
        state["best_model_score"] = torch.tensor(2.0)  # which nothing reaches
        name = "{'monitor': 'val/miou', 'mode': 'max', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
        content["callbacks"][f"ModelCheckpoint{name}'train_time_interval': None}}"] = state

    changed(trained / "last.ckpt", older)
    best = (trained / "best.ckpt").read_bytes()
    fit = ("fit", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt", "--trainer.max_steps", 6)
    status, _, err = lsseg(*fit)
    assert status == 0, err
    state = torch.load(trained / "last.ckpt", weights_only=True)["callbacks"]["BestCheckpoint"]
    assert state["best_model_score"] == 2
    assert (trained / "best.ckpt").read_bytes() == best


@pytest.fixture
def own_run(lsseg, tmp_path, own_folder):
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.crop_size", "[32,32]")
    run = ("--trainer.default_root_dir", tmp_path / "own", "--data.num_workers", 0, "--data.batch_size", 2)
    status, _, err = lsseg("fit", "--config", TINY, *data, *run, "--trainer.val_check_interval", 1)
    assert status == 0, err
    return tmp_path / "own"


OTHERS = {
    "classes: {cell: 128, ground: 0}\nvoid: [7, 255]\n": (
        "the checkpoint's classes are ground, cell in this order, but the data's are cell, ground: list the data's"
    ),
    "classes: {ground: 0, wheel: 128}\nvoid: [7, 255]\n": (
        "the checkpoint was trained on the classes ground, cell, but the data has ground, wheel: to train on"
    ),
}


@pytest.mark.parametrize("listing", OTHERS)
def test_classes_of_another_order_or_name_are_refused(own_run, own_folder, lsseg, listing):
    content = torch.load(own_run / "last.ckpt", weights_only=True)
    assert content["class_names"] == ["ground", "cell"]
    (own_folder / "classes.yaml").write_text(listing.replace("0,", "{value: 0},").replace("128", "{value: 128}"))
    config = ("--config", own_run / "config.yaml", "--ckpt_path", own_run / "last.ckpt")
    before = files_of(own_run)
    for command in ("test", "validate", "predict", "fit"):
        status, _, err = lsseg(command, *config, "--data.images", own_folder / "images")
        assert (status, err.count("\n")) == (1, 1), err
        assert OTHERS[listing] in err
    assert files_of(own_run) == before
    with pytest.raises(InputError, match=OTHERS[listing]):
        load_run(own_run)


@pytest.mark.filterwarnings("ignore:model.start")
def test_other_names_are_a_start_and_old_checkpoints_have_none(own_run, own_folder, lsseg, tmp_path):
    (own_folder / "classes.yaml").write_text("classes:\n  a: {value: 0}\n  b: {value: 128}\nvoid: [7, 255]\n")
    start = ("--model.start", own_run / "last.ckpt", "--trainer.default_root_dir", tmp_path / "new")
    status, _, err = lsseg("fit", "--config", own_run / "config.yaml", *start)
    assert status == 0, err
    changed(own_run / "last.ckpt", lambda content: content.pop("class_names"))
    status, _, err = lsseg("test", "--config", own_run / "config.yaml", "--ckpt_path", own_run / "last.ckpt")
    assert status == 0, err


def test_many_classes_are_not_all_listed():
    names = [f"class{i}" for i in range(150)]
    other = [*names[:70], names[71], names[70], *names[72:]]
    with pytest.raises(
        InputError, match=r"are …, class70 \(number 70\), class71 \(number 71\), … in this order"
    ) as said:
        refuse_other_classes({"class_names": names}, other)
    assert len(str(said.value)) < 300


def test_predict_forgets_what_it_has_written(trained, lsseg, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(photos / f"{number}.png")
    kept, end = [], SavePredictions.on_predict_end

    def note(self, trainer, task):
        kept.append((trainer.predict_loop.return_predictions, trainer.predict_loop.predictions))
        end(self, trainer, task)

    monkeypatch.setattr(SavePredictions, "on_predict_end", note)
    command = ("predict", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt")
    status, _, err = lsseg(*command, "--data.images", photos)
    assert status == 0, err
    assert kept == [(False, [])]
