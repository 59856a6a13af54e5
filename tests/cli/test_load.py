"""A finished run in Python, and the papers' figures from several."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lsseg as lsseg_package
from lsseg.errors import InputError
from lsseg.functional import confusion_matrix, overlap_counts
from lsseg.load import load_run

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture
def runs(lsseg, tmp_path):
    """Two tested runs of different methods."""
    folders = [tmp_path / "ce-seed0", tmp_path / "ls-seed0"]
    for folder, model in zip(folders, ("SegmentationTask", "LevelSetLossTask"), strict=True):
        status, _, err = lsseg(
            *("fit", "--config", TINY, "--model", model, "--model.network.encoder_name", "tu-test_resnet.r160_in1k"),
            *("--trainer.default_root_dir", folder, "--test_after_fit=true", "--panels.images=1"),
        )
        assert status == 0, err
    return folders


@pytest.fixture
def figures(monkeypatch):
    spec = importlib.util.spec_from_file_location("figures", TINY.parents[2] / "experiments" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["figures.py", *map(str, arguments)])
        module.main()

    return call


def test_a_loaded_run_predicts_what_it_predicted_in_its_test(runs):
    for folder in runs:
        task, data = load_run(folder)
        assert not task.training
        sample = data.samples(data.source("test"), training=False)[0]
        with torch.no_grad():
            prediction = task.infer(sample["image"][None]).argmax(1)
        counts = overlap_counts(confusion_matrix(prediction, sample["mask"][None], data.num_classes))[0]
        assert np.load(folder / "test_images.npz")["overlap"][0].tolist() == counts.tolist()


def test_an_image_is_segmented_as_by_the_command(runs, lsseg, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    checkpoint = ("--config", runs[0] / "config.yaml", "--ckpt_path", runs[0] / "last.ckpt")
    output = ("--predictions.output", tmp_path / "out", "--predictions.phi", "[ring]")
    status, _, err = lsseg("predict", *checkpoint, "--data.images", tmp_path / "photo.png", *output)
    assert status == 0, err
    found = lsseg_package.load_run(runs[0]).predict(tmp_path / "photo.png")
    assert found["labels"].tolist() == np.asarray(Image.open(tmp_path / "out" / "photo.png")).tolist()
    np.testing.assert_allclose(found["phi"][2], np.load(tmp_path / "out" / "photo_phi_ring.npy"), atol=1e-6)
    loaded = lsseg_package.load_run(runs[0])
    loaded.data.value_range = (0, 4095)  # of a camera of 12 bits: the same picture
    Image.fromarray((pixels[..., 0] / 255 * 4095).round().astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    deep = loaded.predict(tmp_path / "deep.png")
    loaded.data.value_range = None
    assert torch.equal(deep["labels"], loaded.predict(tmp_path / "grey.png")["labels"])
    with pytest.raises(InputError, match=r"none\.png is not a file: expected an image file"):
        lsseg_package.load_run(runs[0]).predict("none.png")
    with pytest.raises(InputError, match=r"expected the path of an image file, not ndarray"):
        lsseg_package.load_run(runs[0]).predict(pixels)


def test_what_is_no_run(runs, tmp_path):
    with pytest.raises(InputError, match=r"nowhere has no config\.yaml: expected a finished run"):
        load_run(tmp_path / "nowhere")
    content = yaml.safe_load((runs[0] / "config.yaml").read_text())
    for name, text, what in (
        ("config.yaml", "{", "config.yaml is not YAML: "),
        ("config.yaml", "a: 1", "is not the configuration"),
        ("last.ckpt", "x", "is not a checkpoint of a run, or is damaged"),
    ):
        whole = (runs[1] / name).read_bytes()
        (runs[1] / name).write_text(text)
        with pytest.raises(InputError, match=what):
            load_run(runs[1])
        (runs[1] / name).write_bytes(whole)
    content["model"]["init_args"]["lr"] = "fast"
    (runs[0] / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=f"{runs[0]}: .*lr"):
        load_run(runs[0])


def test_figures_of_two_runs(runs, figures):
    for arguments in (("pictures",), ("curves",), ("maps", "--class", load_run(runs[0]).data.class_names[0])):
        figures(arguments[0], *runs, *arguments[1:])
        assert Path(f"{arguments[0]}.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match=r"--class must be one of .*, not unicorn"):
        figures("maps", *runs, "--class", "unicorn")
    with pytest.raises(SystemExit, match=r"ce-seed0 has no panels/test-NAME-steps\.png"):
        figures("steps", runs[0])
    for number in range(3):  # as a network that refines leaves them
        Image.new("RGB", (80, 20)).save(runs[0] / "panels" / f"test-{number}-steps.png")
    figures("steps", runs[0], "--images", 2)
    with Image.open("steps.png") as picture:
        width, height = picture.size
    assert height / width == pytest.approx(2 * 20 / 80, rel=0.05)
    for path in (runs[0] / "panels").iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match="no tested image in common"):
        figures("pictures", *runs)
