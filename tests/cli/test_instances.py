"""LevelSet R-CNN and the semantic Chan-Vese head through the real command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from lsseg.files import read_jsonl

HERE = Path(__file__).parent
TINY = str(HERE / "tiny_instances.yaml")


@pytest.fixture
def fit(lsseg, tmp_path):
    def run(*arguments, folder="run", config=TINY):
        return lsseg("fit", "--config", config, "--trainer.default_root_dir", tmp_path / folder, *arguments)

    return run


@pytest.fixture
def photos(tmp_path):
    """Images of several sizes and kinds."""
    folder = tmp_path / "photos"
    folder.mkdir()
    g = np.random.default_rng(0)
    Image.fromarray(g.integers(0, 256, (70, 90, 3), np.uint8)).save(folder / "colour.jpg")
    Image.fromarray(g.integers(0, 256, (50, 41), np.uint8)).save(folder / "grey.png")
    Image.fromarray(g.integers(0, 65536, (64, 64)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(g.integers(0, 256, (1, 1, 3), np.uint8)).save(folder / "dot.png")
    return folder


def test_a_run_scores_both_masks_and_draws_them(fit, lsseg, tmp_path, monkeypatch):
    monkeypatch.setattr("lsseg.callbacks.results.SURE", 0.0)  # after four updates nothing is
    status, out, err = fit("--test_after_fit", "true", "--panels.images=1")
    assert status == 0, err
    run = tmp_path / "run"
    result = json.loads((run / "test.json").read_text())
    assert result["kind"] == "instances"
    assert {"mask_ap", "initial_mask_ap", "box_ap"} <= result["scores"].keys()
    assert "AP75" in out
    rows = read_jsonl(run / "metrics.jsonl")
    assert any("val/mask_ap" in row for row in rows)
    logged = next(row for row in rows if "train/mask_final" in row)
    terms = {name: value for name, value in logged.items() if name.startswith("train/") and name != "train/loss"}
    assert logged["train/loss"] == pytest.approx(sum(terms.values()), rel=1e-5)
    for name in ("test-scene00000.png", "test-scene00000-evolution.png", "plain-scene00000-prediction.png"):
        assert (run / "panels" / name).stat().st_size > 300
    gallery = json.loads((run / "gallery" / "gallery.json").read_text())
    assert [frame["label"] for frame in gallery[1]["frames"]] == [f"φ after {n} iterations" for n in range(4)]
    assert all((run / "gallery" / frame["file"]).is_file() for entry in gallery for frame in entry["frames"])
    with np.load(run / "test_images.npz") as counts:
        assert counts["index"].tolist() == [0, 1, 2]
        assert counts["objects"].shape == (3, 6)
        assert counts["detections"].shape[1] == counts["initial_detections"].shape[1] == 33
    # The checkpoint gives the same scores; by several views it gives others.
    arguments = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--trainer.default_root_dir")
    status, _, err = lsseg("test", *arguments, tmp_path / "again")
    assert status == 0, err
    assert json.loads((tmp_path / "again" / "test.json").read_text())["scores"] == result["scores"]
    views = ("--model.test_flip", "true", "--model.test_scales", "[0.8,1.0]")
    status, _, err = lsseg("test", *arguments, tmp_path / "views", *views)
    assert status == 0, err


def test_predictions_are_maps_pictures_and_records(fit, lsseg, tmp_path, photos):
    status, _, err = fit()
    assert status == 0, err
    run = tmp_path / "run"
    predict = ("predict", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--data.images", photos)
    written = ("--predictions.steps", "true", "--predictions.contours", "true", "--predictions.score", "0.0")
    status, out, err = lsseg(*predict, "--predictions.output", tmp_path / "out", *written)
    assert status == 0, err
    assert "4 prediction(s)" in out
    for name, size in (("colour", (70, 90)), ("grey", (50, 41)), ("deep", (64, 64)), ("dot", (1, 1))):
        ids = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert ids.shape == size
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}_overlay.png")).shape == (*size, 3)
        records = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        scores = [record["score"] for record in records]
        assert scores == sorted(scores, reverse=True)
        for number, record in enumerate(records, start=1):
            mask = coco_mask.decode(record["segmentation"]).astype(bool)
            assert mask.shape == size
            assert mask[ids == number].all()  # where objects overlap, the better one has the pixel
            assert record["category"] in ("blob", "ring", "star", "panel", "wire", "dots")
            left, top, width, height = record["bbox"]
            for contour in record["contours"]:
                x, y = np.array(contour).reshape(-1, 2).T
                assert x.min() >= left - 0.01
                assert y.max() <= top + height + 0.01
                assert width > 0
    assert (tmp_path / "out" / "colour_evolution.png").is_file()
    # Nothing is found: an empty map, no records.
    status, _, err = lsseg(*predict, "--predictions.output", tmp_path / "none", "--predictions.score", "1.0")
    assert status == 0, err
    assert json.loads((tmp_path / "none" / "colour.json").read_text()) == []
    assert not np.asarray(Image.open(tmp_path / "none" / "colour.png")).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--data", "SyntheticShapes"),
            "model LevelSetRCNNTask learns instances, but data SyntheticShapes has label maps",
        ),
        (("--model.network.evolution", "snake"), "evolution"),
        (("--model.network.resolution", "100"), "model.network.resolution must be 28, 56, 112 or 224, not 100"),
        (("--model.network.target", "binary"), "model.network.evolution needs target tsdf"),
        (("--model.test_scales", "[0]"), "model.test_scales must be positive numbers"),
        (("--model.final_weight", "-1"), "model.final_weight must not be negative"),
        (("--data.short_side", "0"), "data.short_side must be a length"),
        (("--data.objects", "0"), "objects must be an integer from 1"),
        (("--predictions.phi", "[blob]"), "predictions.phi is only for label maps"),
        (("--predictions.score", "2"), "predictions.score must lie in 0..1"),
        (("--model.network.encoder_weights", "nowhere.pth"), "encoder_weights: nowhere.pth is not a file"),
    ],
)
def test_mistakes_are_named_in_one_line(fit, arguments, message, tmp_path):
    status, _, err = fit(*arguments)
    assert status == 1
    lines = [line for line in err.splitlines() if line.startswith("lsseg: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_semantic_model_on_instances_is_refused(lsseg, tmp_path):
    status, _, err = lsseg("fit", "--config", HERE / "tiny.yaml", "--data", "SyntheticInstances")
    assert status == 1
    assert "model SegmentationTask learns label maps, but data SyntheticInstances has instances" in err


def test_a_split_without_an_object_is_named(fit, tmp_path):
    folder = tmp_path / "empty"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
        for i in range(20):
            shape = (64, 72, 3) if part == "images" else (64, 72)
            Image.fromarray(np.zeros(shape, np.uint8)).save(folder / part / f"Penn{i:02d}.png")
    status, _, err = fit("--data", "PennFudan", "--data.root", folder)
    assert status == 1
    assert "the train split of PennFudan has no object in its 14 images" in err
    assert "Traceback" not in err


@pytest.fixture
def semantic(tmp_path):
    """The tiny configuration with its network under a Chan-Vese head."""
    content = yaml.safe_load((HERE / "tiny.yaml").read_text())
    network = content["model"]["init_args"]["network"]
    head = {"class_path": "ChanVeseNet", "init_args": {"features": 4, "stride": 2, "network": network}}
    content["model"] = {"class_path": "ChanVeseTask", "init_args": {"network": head}}
    path = tmp_path / "chan_vese.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_the_semantic_head_trains_tests_and_shows_its_steps(fit, lsseg, semantic, photos, tmp_path):
    status, _, err = fit("--test_after_fit", "true", "--panels.images=1", config=semantic)
    assert status == 0, err
    run = tmp_path / "run"
    for name in ("test-scene00000-steps.png", "test-scene00000-evolution.png"):
        assert (run / "panels" / name).stat().st_size > 5000
    logged = next(row for row in read_jsonl(run / "metrics.jsonl") if "train/final" in row)
    assert logged["train/loss"] == pytest.approx(logged["train/initial"] + logged["train/final"], rel=1e-5)
    arguments = ("--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--data.images", photos)
    written = ("--predictions.output", tmp_path / "out", "--predictions.steps", "true", "--predictions.phi", "[blob]")
    status, _, err = lsseg("predict", *arguments, *written)
    assert status == 0, err
    for name in ("_step0.png", "_step3.png", "_steps.png", "_evolution.png", "_phi_blob.npy"):
        assert (tmp_path / "out" / f"colour{name}").is_file()
    last = np.asarray(Image.open(tmp_path / "out" / "colour_step3.png"))
    assert (last == np.asarray(Image.open(tmp_path / "out" / "colour.png"))).mean() > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model.network.stride", "3"), "model.network.stride must be 1, 2, 4, 8, 16, 32 or null, not 3"),
        (("--model.truncation", "0"), "model.truncation must be positive"),
        (("--model.network.max_classes", "0"), "model.network.max_classes must be at least 1"),
        (("--predictions.contours", "true"), "predictions.contours is only for instances"),
        (("--model.network", "SmpNet"), "model.network must be ChanVeseNet, not SmpNet"),
    ],
)
def test_mistakes_with_the_semantic_head_are_named(fit, semantic, arguments, message):
    status, _, err = fit(*arguments, config=semantic)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
