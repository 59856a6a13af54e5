"""fit, validate, test and predict through the real command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lsseg.callbacks import JsonlLogger
from lsseg.errors import InputError
from lsseg.files import read_jsonl

TINY = str(Path(__file__).with_name("tiny.yaml"))


def test_a_run_leaves_everything_in_its_folder(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.01  # resolved: the default is written out
    assert config["trainer"]["default_root_dir"] is None
    environment = json.loads((trained / "environment.json").read_text())
    assert {"command", "git_commit", "packages"} <= environment.keys()
    rows = read_jsonl(trained / "metrics.jsonl")
    assert any("val/miou" in row for row in rows)
    assert "val/miou" in (trained / "metrics.csv").read_text().splitlines()[0]
    result = json.loads((trained / "test.json").read_text())
    assert result["step"] == 4
    assert 5e7 < result["train_peak_bytes"] < 1e11  # torch alone takes more, and no machine of the tests has as much
    assert {"miou", "accuracy", "iou/background", "boundary_f1_2px"} <= result["scores"].keys()
    assert (trained / "panels" / "test-scene00000.png").is_file()
    assert (trained / "panels" / "val-scene00000.png").is_file()
    assert {"last.ckpt", "best.ckpt"} <= {path.name for path in trained.iterdir()}


def test_counts_of_each_image_add_up_to_the_metrics(trained):
    from lsseg.functional import boundary_f1, class_iou

    scores = json.loads((trained / "test.json").read_text())["scores"]
    with np.load(trained / "test_images.npz") as counts:
        assert list(counts["names"]) == ["scene00000", "scene00001", "scene00002"]
        overlap, boundary = (torch.from_numpy(counts[name].sum(0)) for name in ("overlap", "boundary"))
    assert float(class_iou(overlap).nanmean()) == pytest.approx(scores["miou"], rel=1e-6)
    for i, radius in enumerate((1, 2, 3)):
        expected = scores[f"boundary_f1_{radius}px"]
        assert float(boundary_f1(boundary[i]).nanmean()) == pytest.approx(expected, rel=1e-6)


def test_test_repeats_the_scores_from_the_saved_config_and_checkpoint(trained, lsseg, tmp_path):
    again = tmp_path / "again"
    config, checkpoint = trained / "config.yaml", trained / "last.ckpt"
    status, _, err = lsseg("test", "--config", config, "--ckpt_path", checkpoint, "--trainer.default_root_dir", again)
    assert status == 0, err
    first, second = (json.loads((folder / "test.json").read_text()) for folder in (trained, again))
    assert first["scores"] == second["scores"]
    assert second["step"] == 4
    assert second["train_peak_bytes"] is None  # nothing was trained
    # The command line beats the checkpoint.
    status, _, err = lsseg("test", "--config", config, "--ckpt_path", checkpoint, "--data.test_images", 1)
    assert status == 0, err
    (inside,) = trained.glob("test-*")  # without a folder of its own it goes below the run's
    assert json.loads((inside / "test.json").read_text())["test_images"] == 1


def test_settings_can_be_compared_on_the_validation_split(trained, lsseg, tmp_path):
    status, out, err = lsseg(
        *("test", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt"),
        *("--data.test_split=val", "--data.test_images=0", f"--trainer.default_root_dir={tmp_path / 'chosen'}"),
    )
    assert status == 0, err
    assert "2 val images" in out
    result = json.loads((tmp_path / "chosen" / "test.json").read_text())
    known = [row for row in read_jsonl(trained / "metrics.jsonl") if "val/miou" in row]
    assert result["scores"]["miou"] == pytest.approx(known[-1]["val/miou"], abs=1e-7)
    assert (result["test_split"], result["test_images"]) == ("val", 2)


def test_validate(trained, lsseg):
    status, _, err = lsseg("validate", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt")
    assert status == 0, err
    (folder,) = trained.glob("validate-*")
    assert any("val/miou" in row for row in read_jsonl(folder / "metrics.jsonl"))


def test_two_runs_with_one_seed_are_bit_identical(trained, lsseg, tmp_path):
    """Also with two loader processes instead of none, so that nothing depends on them."""
    other = tmp_path / "other"
    arguments = ("--trainer.default_root_dir", other, "--data.num_workers", 2)
    assert lsseg("fit", "--config", TINY, *arguments)[0] == 0
    states = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (trained, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_an_interrupted_run_resumes_bit_identically(trained, lsseg, tmp_path):
    """Stopped in the middle of an epoch at step 3 of 4 (by limiting an otherwise equal run), then continued."""
    folder = tmp_path / "resumed"
    config = ("--config", TINY, "--trainer.default_root_dir", folder, "--checkpoint_every_n_steps", 3)
    from lsseg.tasks import SegmentationTask

    step = SegmentationTask.training_step

    def fail(self, batch, batch_idx):
        if self.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", fail)
        with pytest.raises(SystemExit):
            lsseg("fit", *config)
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 3
    before = (folder / "config.yaml").read_text(), (folder / "environment.json").read_text()
    assert lsseg("fit", *config, "--ckpt_path", folder / "last.ckpt")[0] == 0
    assert ((folder / "config.yaml").read_text(), (folder / "environment.json").read_text()) == before
    assert len(list(folder.glob("config-*.yaml"))) == len(list(folder.glob("environment-*.json"))) == 1
    states = [torch.load(f / "last.ckpt", weights_only=True)["state_dict"] for f in (trained, folder)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_level_set_task_logs_both_terms_and_warms_up(lsseg, tmp_path):
    arguments = ("--model", "LevelSetLossTask", "--model.level_set_weight", 0.5, "--model.warmup_steps", 2)
    status, _, err = lsseg(
        "fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *arguments,
        "--trainer.log_every_n_steps", 1, "--model.epsilon_start", 0.5, "--model.reduction", "balanced",
    )  # fmt: skip
    assert status == 0, err
    rows = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "train/level_set" in row]
    for row, weight in zip(rows, (0.0, 0.25, 0.5, 0.5), strict=True):
        expected = row["train/cross_entropy"] + weight * row["train/level_set"]
        assert row["train/loss"] == pytest.approx(expected, rel=1e-6)


def test_predict_writes_labels_overlays_and_phi(trained, lsseg, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    g = np.random.default_rng(0)
    sizes = {"a.jpg": (50, 70), "b.png": (33, 41)}
    for name, size in sizes.items():
        Image.fromarray(g.integers(0, 256, (*size, 3), np.uint8)).save(photos / name)
    Image.fromarray(g.integers(0, 60000, (30, 20)).astype(np.uint16)).save(photos / "grey16.tif")
    status, out, err = lsseg(
        "predict", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt", "--data.images", photos,
        "--predictions.output", tmp_path / "out", "--predictions.phi", "[ring]", "--model.window", 32,
    )  # fmt: skip
    assert status == 0, err
    assert "3 prediction(s)" in out
    for name, size in sizes.items():
        stem = Path(name).stem
        labels = Image.open(tmp_path / "out" / f"{stem}.png")
        assert labels.mode == "P"
        assert np.asarray(labels).shape == size
        assert np.asarray(labels).max() < 7
        assert np.asarray(Image.open(tmp_path / "out" / f"{stem}_overlay.png")).shape == (*size, 3)
        phi = np.load(tmp_path / "out" / f"{stem}_phi_ring.npy")
        assert phi.shape == size
        assert np.abs(phi).max() <= 0.5
        assert ((phi > 0) <= (np.asarray(labels) == 2)).all()  # P > ½ is the label


def test_several_views_are_looked_at_when_it_is_tested(trained, lsseg, tmp_path):
    test = ("test", "--config", trained / "config.yaml", "--ckpt_path", trained / "last.ckpt")
    views = ("--model.test_flip=true", "--model.test_scales=[0.5,1.0]", "--model.window=48")
    assert lsseg(*test, "--trainer.default_root_dir", tmp_path / "plain")[0] == 0
    status, _, err = lsseg(*test, "--trainer.default_root_dir", tmp_path / "views", *views)
    assert status == 0, err
    one, other = (json.loads((tmp_path / name / "test.json").read_text())["scores"] for name in ("plain", "views"))
    assert one["accuracy"] != other["accuracy"]
    status, _, err = lsseg(*test, "--trainer.default_root_dir", tmp_path / "none", "--model.test_scales=[]")
    assert (status, "model.test_scales must be positive numbers, not []" in err) == (1, True)


@pytest.mark.filterwarnings("ignore:model.start")
def test_a_network_starts_from_a_run_on_other_classes(trained, lsseg, tmp_path, camvid):
    fit = (
        "fit",
        "--config",
        TINY,
        "--data=CamVid",
        f"--data.root={camvid}",
        "--data.batch_size=2",
        "--data.resize=[64,64]",
    )
    short = ("--data.num_workers=0", "--trainer.max_steps=1", "--trainer.val_check_interval=1", "--model.lr=0")
    run = ("--trainer.default_root_dir", tmp_path / "other")
    status, _, err = lsseg(*fit, *short, *run, f"--model.start={trained / 'last.ckpt'}")
    assert status == 0, err
    first, second = (
        torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (trained, tmp_path / "other")
    )
    learnt = [key for key in first if key.startswith("network.") and key.endswith(("weight", "bias"))]
    same = {key for key in learnt if first[key].shape == second[key].shape and torch.equal(first[key], second[key])}
    assert {key for key in learnt if key not in same} == {key for key in learnt if "segmentation_head" in key}
    # A run that has begun goes on without the file.
    (trained / "last.ckpt").rename(tmp_path / "gone.ckpt")
    status, _, err = lsseg(
        "test", "--config", tmp_path / "other" / "config.yaml", "--ckpt_path", tmp_path / "other" / "last.ckpt"
    )
    assert status == 0, err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"is not a file"),
        (lambda path: path.write_bytes(b"no"), "is not a checkpoint of a run, or is damaged"),
        (lambda path: torch.save({"state_dict": {"network.x": torch.zeros(1)}}, path), "is from another network"),
        (lambda path: torch.save([1], path), "is not a checkpoint of a run"),
        (lambda path: torch.save({"state_dict": [torch.zeros(1)]}, path), "is not a checkpoint of a run"),
        (lambda path: torch.save({"state_dict": {1: torch.zeros(1)}}, path), "is not a checkpoint of a run"),
        (lambda path: torch.save(torch.zeros(1), path), "is not a checkpoint of a run"),
    ],
)
def test_what_is_no_start(lsseg, tmp_path, make, message):
    make(tmp_path / "start.ckpt")
    status, _, err = lsseg("fit", "--config", TINY, f"--model.start={tmp_path / 'start.ckpt'}")
    assert (status, err.count("\n"), message in err) == (1, 1, True), err


def test_camvid_trains_and_reports_both_tests(camvid, lsseg, tmp_path):
    data = ("--data", "CamVid", "--data.root", camvid, "--data.crop_size", "[32,32]", "--data.batch_size", 2)
    run = ("--trainer.default_root_dir", tmp_path / "run", "--test_after_fit", "true")
    status, _, err = lsseg("fit", "--config", TINY, *data, "--data.num_workers", 0, *run)
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "test.json").read_text())
    assert result["test_images"] == 2
    assert result["classes"][0] == "sky"
    status, _, err = lsseg(
        "test", "--config", tmp_path / "run" / "config.yaml", "--ckpt_path", tmp_path / "run" / "last.ckpt",
        "--data.test_sequence", "Seq05VD", "--trainer.default_root_dir", tmp_path / "seq",
    )  # fmt: skip
    assert status == 0, err
    assert json.loads((tmp_path / "seq" / "test.json").read_text())["test_images"] == 1


def test_own_folder_fits_tests_and_predicts_without_python(own_folder, lsseg, tmp_path):
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.crop_size", "[32,32]")
    run = ("--trainer.default_root_dir", tmp_path / "run", "--test_after_fit", "true", "--data.batch_size", 2)
    status, _, err = lsseg("fit", "--config", TINY, *data, "--data.num_workers", 0, *run)
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "test.json").read_text())["classes"] == ["ground", "cell"]
    status, _, err = lsseg(
        "predict", "--config", tmp_path / "run" / "config.yaml", "--ckpt_path", tmp_path / "run" / "last.ckpt",
        "--data.images", own_folder / "images", "--predictions.output", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, err
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 8


def test_any_loss_and_network_by_class_path(lsseg, tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text(
        "import torch\n"
        "from lsseg.models import SegOutput\n"
        "class MyLoss(torch.nn.Module):\n"
        "    def __init__(self, power: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.power = power\n"
        "    def forward(self, logits, target):\n"
        "        keep = target != 255\n"
        "        return logits.square().mean() ** self.power + 0 * keep.sum()\n"
        "class MyNet(torch.nn.Module):\n"
        "    def __init__(self, num_classes: int, width: int = 4):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Conv2d(3, num_classes, 1)\n"
        "    def forward(self, image):\n"
        "        return SegOutput(self.layer(image))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = ("--model.criterion", "mine_here.MyLoss", "--model.criterion.power", 2, "--model.network", "mine_here.MyNet")
    status, _, err = lsseg("fit", "--config", TINY, *mine, "--trainer.default_root_dir", tmp_path / "run")
    assert status == 0, err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["criterion"]["init_args"]["power"] == 2


@pytest.mark.parametrize("spelling", [("--model.network.stride", "null"), ("--model.network.stride=null",)])
def test_null_reaches_a_class_inside_another(lsseg, tmp_path, spelling):
    network = ("--model.network", "ChanVeseNet", "--model.network.features", 4, "--model.network.network", "SmpNet")
    inner = ("--model.network.network.encoder_name", "tu-test_resnet.r160_in1k", "--model.network.network.decoder")
    status, _, err = lsseg(
        "fit", "--config", TINY, "--model", "ChanVeseTask", *network, "--model.network.stride", 2, *spelling,
        *inner, "null", "--trainer.max_steps", 1, "--trainer.default_root_dir", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    made = config["model"]["init_args"]["network"]["init_args"]
    assert made["stride"] is None
    assert made["network"]["init_args"]["decoder"] is None


def test_evaluation_uses_the_full_weight_whatever_the_warm_up(lsseg, tmp_path):
    losses = []
    for warmup in (0, 100):
        folder = tmp_path / str(warmup)
        arguments = ("--model", "LevelSetLossTask", "--model.warmup_steps", warmup, "--model.lr", 0)
        assert lsseg("fit", "--config", TINY, "--trainer.default_root_dir", folder, *arguments)[0] == 0
        losses.append([row["val/loss"] for row in read_jsonl(folder / "metrics.jsonl") if "val/loss" in row])
    assert losses[0] == losses[1]


def test_a_torn_log_loses_only_its_torn_line(tmp_path):
    JsonlLogger(str(tmp_path)).log_metrics({"loss": 1.0}, 0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    resumed = JsonlLogger(str(tmp_path))
    resumed.log_metrics({"loss": 3.0}, 1)
    resumed.log_metrics({"loss": 4.0}, 2)
    assert [row["loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1.0, 3.0, 4.0]


def test_a_deleted_folder_ends_the_run_instead_of_half_of_one_being_written(tmp_path):
    logger = JsonlLogger(str(tmp_path / "run"))
    logger.log_metrics({"loss": 1.0}, 0)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()  # as a checkpoint would make it again
    with pytest.raises(InputError, match=r"metrics\.jsonl is gone: it was deleted or moved"):
        logger.log_metrics({"loss": 2.0}, 1)
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_mixed_precision_accumulation_and_clipping(lsseg, tmp_path, precision):
    options = ("--trainer.precision", precision, "--trainer.accumulate_grad_batches", 2)
    options += ("--trainer.gradient_clip_val", 1.0, "--model", "LevelSetLossTask", "--model.optimizer", "adamw")
    run = ("--trainer.default_root_dir", tmp_path / "run", "--test_after_fit", "true")
    status, _, err = lsseg("fit", "--config", TINY, *options, *run)
    assert status == 0, err
    result = json.loads((tmp_path / "run" / "test.json").read_text())
    assert 0 < result["scores"]["accuracy"] < 1
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(np.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)


def test_compiling_channels_last_and_averaged_weights(trained, lsseg, tmp_path, monkeypatch):
    compiled = []

    def compile_(network):
        weights = [weight for weight in network.parameters() if weight.ndim == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        compiled.append(type(network).__name__)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    average = {"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
    run = tmp_path / "averaged"
    options = ("--compile", "true", "--channels_last", "true", "--trainer.callbacks", json.dumps([average]))
    options += ("--test_after_fit", "true")
    status, _, err = lsseg("fit", "--config", TINY, *options, "--trainer.default_root_dir", run)
    assert status == 0, err
    assert compiled == ["SmpNet"]
    last, mean = (torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (trained, run))
    assert last.keys() == mean.keys()
    assert any(not torch.equal(last[name], mean[name]) for name in mean)
    # What is tested, here and later, are the averaged weights.
    again = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--trainer.callbacks", "null")
    status, _, err = lsseg("test", *again, "--trainer.default_root_dir", tmp_path / "again")
    assert status == 0, err
    one, other = (json.loads((path / "test.json").read_text())["scores"] for path in (run, tmp_path / "again"))
    assert one == other


def test_a_detector_is_not_compiled(lsseg, tmp_path):
    fit = ("fit", "--config", Path(TINY).with_name("tiny_instances.yaml"), "--compile", "true")
    status, _, err = lsseg(*fit, "--trainer.default_root_dir", tmp_path / "run")
    assert (status, "compile must be false for a detector" in err) == (1, True)
    assert not (tmp_path / "run").exists()


def test_help_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, lsseg.cli\ntry: lsseg.cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ablate" in done.stdout
