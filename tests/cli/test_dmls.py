"""DMLS through the real command line: training, class weights, pictures of the steps, bad input."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lsseg.files import read_jsonl

TINY = str(Path(__file__).with_name("tiny.yaml"))


@pytest.fixture
def config(tmp_path):
    """The tiny configuration with its network inside DMLS, K = 2, and the paper's weights."""
    content = yaml.safe_load(Path(TINY).read_text())
    network = content["model"]["init_args"]["network"]
    content["model"] = {
        "class_path": "DMLSTask",
        "init_args": {
            "network": {"class_path": "DMLS", "init_args": {"steps": 2, "network": network}},
            "class_weights": "median_frequency",
            "boundary_weight": 1.0,
        },
    }
    path = tmp_path / "dmls.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def fit(lsseg, config, tmp_path):
    def run(*arguments, folder="run"):
        return lsseg("fit", "--config", config, "--trainer.default_root_dir", tmp_path / folder, *arguments)

    return run


def test_a_run_counts_its_classes_once_and_logs_every_step(fit, lsseg, config, tmp_path):
    status, _, err = fit("--test_after_fit", "true", "--panels.images=1")
    assert status == 0, err
    run = tmp_path / "run"
    weights = json.loads((run / "class_weights.json").read_text())
    assert list(weights) == ["background", "blob", "ring", "star", "panel", "wire", "dots"]
    state = torch.load(run / "last.ckpt", weights_only=False)["state_dict"]
    np.testing.assert_allclose(state["criterion.class_weights"], list(weights.values()), rtol=1e-6)
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if "train/step2" in row]
    both = rows[0]["train/step1"] + rows[0]["train/step2"]  # of two predictions each
    assert rows[0]["train/loss"] == pytest.approx(both / 4, rel=1e-5)
    gains = [row["train/gain"] for row in rows]
    assert gains[0] == pytest.approx(1)
    assert gains[-1] != gains[0]
    assert (run / "panels" / "test-scene00000-steps.png").is_file()
    gallery = json.loads((run / "gallery" / "gallery.json").read_text())  # three images: one is the best, one the worst
    assert [entry["which"] for entry in gallery] == ["worst", "best"]
    assert gallery[0]["score"] <= gallery[1]["score"]
    assert [frame["label"] for frame in gallery[0]["frames"]] == ["step 1", "step 2"]
    pictures = [np.asarray(Image.open(run / "gallery" / frame["file"])) for frame in gallery[0]["frames"]]
    assert pictures[0].shape == (64, 64, 3)
    assert (pictures[0] != pictures[1]).any()
    # A test takes the weights from the checkpoint and counts nothing.
    scores = json.loads((run / "test.json").read_text())["scores"]
    again = tmp_path / "again"
    arguments = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    status, _, err = lsseg("test", *arguments, "--trainer.default_root_dir", again, "--gallery", "0")
    assert status == 0, err
    assert json.loads((again / "test.json").read_text())["scores"] == scores
    assert not (again / "class_weights.json").exists()
    assert not (again / "gallery").exists()


def test_only_the_last_prediction_is_supervised_on_request(fit, tmp_path):
    status, _, err = fit("--model.deep_supervision", "false", "--model.class_weights", "null")
    assert status == 0, err
    names = {name for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") for name in row}
    assert "train/loss" in names
    assert not any(name.startswith("train/step") for name in names)


@pytest.mark.parametrize("window", [[], ["--model.window=40"]])
def test_predict_writes_every_step(fit, lsseg, tmp_path, window):
    assert fit()[0] == 0
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(images / "a.png")
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ["--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--data.images", images, *window]
    status, _, err = lsseg("predict", *arguments, "--predictions.output", out, "--predictions.steps", "true")
    assert status == 0, err
    assert {p.name for p in out.iterdir()} == {"a.png", "a_overlay.png", "a_step1.png", "a_step2.png", "a_steps.png"}
    last, final = (np.array(Image.open(out / name)) for name in ("a_step2.png", "a.png"))
    assert last.shape == (50, 60)
    assert np.array_equal(last, final)


def test_predict_of_a_plain_network_has_no_steps(lsseg, tmp_path):
    run = tmp_path / "plain"
    assert lsseg("fit", "--config", TINY, "--trainer.default_root_dir", run)[0] == 0
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = ["--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--data.images", tmp_path / "a.png"]
    status, _, err = lsseg("predict", *arguments, "--predictions.steps", "true")
    assert status == 1
    assert "this network has no steps" in err


def test_a_class_without_training_pixels_has_weight_zero_and_is_said(fit, own_folder):
    (own_folder / "classes.yaml").write_text(
        "classes:\n  ground: {value: 0}\n  unicorn: {value: 1}\n  cell: {value: 128}\nvoid: [7, 255]\n"
    )
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.crop_size", "[48,48]")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status, _, err = fit(*data, folder="own")
    assert status == 0, err
    assert [str(w.message) for w in caught if "unicorn" in str(w.message)] == [
        f"no training mask has a pixel of unicorn ({own_folder / 'classes.yaml'})",
        "the training split has no pixel of unicorn: the weight is 0",
    ]
    weights = json.loads((own_folder.parent / "own" / "class_weights.json").read_text())
    assert weights["unicorn"] == 0
    assert weights["cell"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.network.steps=0"], "model.network.steps must be at least 1, not 0"),
        (["--model.network.rho=0"], "model.network.rho must lie in (0, 1], not 0"),
        (["--model.network.truncation=-3"], "model.network.truncation must be positive, in pixels, not -3"),
        (["--model.step_weights=[.nan,1]"], "model.step_weights must be 2 numbers of at least 0"),
        (["--model.step_weights=[0,0]"], "model.step_weights must be 2 numbers of at least 0, at least one"),
        (["--model.boundary_weight=.nan"], "model.boundary_weight must not be negative"),
        (["--model.network.network=DMLS"], "must not be DMLS itself"),
        (
            ["--model.network.network=DFCN", "--model.network.network.width=0"],
            "model.network.network.width must be at least 1",
        ),
        (["--model.step_weights=[1,2,3]"], "model.step_weights must be 2 numbers of at least 0"),
        (["--model.class_weights=[1,2,3]"], "model.class_weights must be 7 numbers of at least 0"),
        (["--model.boundary_weight=-1"], "model.boundary_weight must not be negative"),
        (["--model.network.likelihood=magic"], "model.network.likelihood"),
        (["--model.class_weights=magic"], "model.class_weights"),
    ],
)
def test_bad_input_is_one_line(fit, arguments, message):
    status, _, err = fit(*arguments)
    assert status == 1
    last = [line for line in err.splitlines() if line.startswith("lsseg: error:")]
    assert len(last) == 1
    assert message in last[0]


def test_weights_may_be_those_that_another_run_has_counted(fit, lsseg, tmp_path):
    names = ("background", "blob", "ring", "star", "panel", "wire", "dots")
    given = tmp_path / "class_weights.json"
    # By name, whatever their order.
    given.write_text(json.dumps(dict(reversed(list(zip(names, range(1, 8), strict=True))))))
    status, _, err = fit("--model.class_weights", given)
    assert status == 0, err
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["state_dict"]
    assert state["criterion.class_weights"].tolist() == list(range(1, 8))
    given.unlink()  # the run goes on without it
    run = tmp_path / "run"
    status, _, err = lsseg("test", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt")
    assert status == 0, err
    for content, line in (
        (None, f"or a run's class_weights.json; {given}: No such file or directory"),
        ("[1, 2]", f"or a run's class_weights.json; {given}: not a class_weights.json"),
        ('{"cat": 1, "dog": 2}', f"{given} must have the classes of the data, not cat, dog"),
    ):
        if content is not None:
            given.write_text(content)
        status, _, err = fit("--model.class_weights", given, "--trainer.default_root_dir", "other")
        assert (status, line in err) == (1, True), err


def test_weights_left_by_another_run_are_not_taken(fit, tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "class_weights.json"
    path.write_text("{")
    assert fit()[0] == 0
    assert json.loads(path.read_text())["background"] > 0


def test_a_continued_run_takes_the_weights_of_its_checkpoint(fit, lsseg, tmp_path):
    assert fit()[0] == 0
    run = tmp_path / "run"
    (run / "class_weights.json").unlink()
    weights = torch.load(run / "last.ckpt", weights_only=False)["state_dict"]["criterion.class_weights"]
    arguments = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--trainer.max_steps", 6)
    status, _, err = lsseg("fit", *arguments, "--trainer.default_root_dir", run)
    assert status == 0, err
    assert not (run / "class_weights.json").exists()
    after = torch.load(run / "last.ckpt", weights_only=False)
    assert after["global_step"] == 6
    assert torch.equal(after["state_dict"]["criterion.class_weights"], weights)


def test_training_masks_that_are_all_void(fit, own_folder):
    (own_folder / "classes.yaml").write_text("classes:\n  a: {value: 3}\n  b: {value: 4}\nvoid: [0, 7, 128, 255]\n")
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.crop_size", "[48,48]")
    status, _, err = fit(*data)
    assert status == 1
    assert "every pixel of its masks is void" in err


def test_images_whose_names_are_those_of_predictions(fit, lsseg, tmp_path):
    assert fit()[0] == 0
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a", "a_step1"):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(images / f"{name}.png")
    run = tmp_path / "run"
    arguments = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--data.images", images)
    status, _, err = lsseg("predict", *arguments)
    assert status == 1
    assert "would have the same file name" in err


def test_pictures_of_an_image_of_one_row(fit, lsseg, tmp_path):
    assert fit()[0] == 0
    Image.fromarray(np.zeros((1, 60, 3), np.uint8)).save(tmp_path / "row.png")
    run = tmp_path / "run"
    arguments = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--data.images")
    status, _, err = lsseg("predict", *arguments, tmp_path / "row.png", "--predictions.steps", "true")
    assert status == 0, err
