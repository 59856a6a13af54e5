"""Official scores and files for servers, on a tiny Cityscapes."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lsseg.metrics.cityscapes import cityscapes_object_scores, cityscapes_pixel_scores

pytestmark = pytest.mark.extra("cityscapes")
HERE = Path(__file__).parent


def save(path, values, kind=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, kind)).save(path)


@pytest.fixture
def cityscapes(tmp_path):
    """Two images to train on and three others, all of one scene: road, void, a large car and a small one."""
    root = tmp_path / "cityscapes"
    labels = np.full((40, 50), 7)
    labels[39] = 0
    ids = labels.copy()
    for number, place in enumerate(((slice(2, 22), slice(3, 33)), (slice(30, 36), slice(10, 30)))):
        labels[place], ids[place] = 26, 26000 + number
    for split, city, count in (("train", "ulm", 2), ("val", "bonn", 3)):
        for i in range(count):
            name = f"{city}_00000{i}_000001"
            pixels = np.random.default_rng(i).integers(0, 256, (*labels.shape, 3))
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", pixels)
            save(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", labels)
            save(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", ids, np.uint16)
    return root


def config(tmp_path, name, data, **options):
    """A tiny configuration with another data set and the official scores."""
    content = yaml.safe_load((HERE / name).read_text())
    content["trainer"] |= {"max_steps": 1, "val_check_interval": 1, "callbacks": ["OfficialScores"]}
    content["data"] = {"class_path": data, "init_args": {"batch_size": 2, "num_workers": 0, **options}}
    content["test_after_fit"] = True
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "config.yaml"


def submit(lsseg, root):
    """Files for the server of the images in all cities."""
    return lsseg(
        *("predict", "--config", "run/config.yaml", "--ckpt_path", "run/last.ckpt", "--predictions.output=server"),
        *(f"--data.images={root}/leftImg8bit/val", "--predictions.submission=true"),
    )


def test_official_scores_agree_with_the_projects(tmp_path, lsseg, cityscapes):
    file = config(tmp_path, "tiny.yaml", "Cityscapes", root=str(cityscapes), partial=True)
    status, out, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=run")
    assert status == 0, err
    assert "official scores (%): " in out
    assert not (tmp_path / "run" / "official").exists()
    scores = json.loads((tmp_path / "run" / "test.json").read_text())["scores"]
    assert scores["official_miou"] == pytest.approx(scores["miou"], abs=1e-6)
    assert {"official_iiou", "official_category_miou", "official_category_iiou"} <= scores.keys()
    (cityscapes / "gtFine").rename(cityscapes / "hidden")  # a prediction needs no truth
    status, _, err = submit(lsseg, cityscapes)
    assert status == 0, err
    (cityscapes / "hidden").rename(cityscapes / "gtFine")
    files = sorted((tmp_path / "server").iterdir())
    assert len(files) == 3
    truth = [cityscapes / "gtFine/val/bonn" / f.name.replace("leftImg8bit", "gtFine_labelIds") for f in files]
    again = cityscapes_pixel_scores(list(zip(files, truth, strict=True)))
    assert again["miou"] == pytest.approx(scores["official_miou"], abs=1e-6)


def test_official_scores_of_instances(tmp_path, lsseg, cityscapes):
    file = config(tmp_path, "tiny_instances.yaml", "CityscapesInstances", root=str(cityscapes), partial=True)
    status, _, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=run")
    assert status == 0, err
    scores = json.loads((tmp_path / "run" / "test.json").read_text())["scores"]
    status, _, err = submit(lsseg, cityscapes)
    assert status == 0, err
    texts = sorted((tmp_path / "server").glob("*.txt"))
    assert len(texts) == 3
    folder = cityscapes / "gtFine/val/bonn"
    truth = [folder / f.name.replace("leftImg8bit.txt", "gtFine_instanceIds.png") for f in texts]
    again = cityscapes_object_scores(list(zip(texts, truth, strict=True)), tmp_path / "server")
    assert again["ap"] == pytest.approx(scores["official_ap"], abs=1e-6)


def test_official_scores_of_lvis(tmp_path, lsseg, write_lvis):
    options = {"root": str(write_lvis(tmp_path / "lvis")), "val_images": "val2017", "partial": True}
    file = config(tmp_path, "tiny_instances.yaml", "LVIS", **options)
    status, out, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=run")
    assert status == 0, err
    assert "official scores (%): " in out
    assert 0 <= json.loads((tmp_path / "run" / "test.json").read_text())["scores"]["official_ap"] <= 1


def test_files_for_the_server_of_ade20k(tmp_path, lsseg):
    root = tmp_path / "ADEChallengeData2016"
    g = np.random.default_rng(0)
    for folder in ("training", "validation"):
        for i in range(2):
            save(root / "images" / folder / f"ADE_{i}.png", g.integers(0, 256, (60, 84, 3)))
            save(root / "annotations" / folder / f"ADE_{i}.png", g.integers(0, 151, (60, 84)))
    file = config(tmp_path, "tiny.yaml", "ADE20K", root=str(root), partial=True, resize=[32, 48])
    status, _, err = lsseg("fit", "--config", file, "--trainer.callbacks=null", "--trainer.default_root_dir=run")
    assert status == 0, err
    predict = ("predict", "--config", "run/config.yaml", "--ckpt_path", "run/last.ckpt", "--predictions.output")
    images = f"--data.images={root}/images/validation"
    for name, options in (("server", ["--predictions.submission=true"]), ("own", [])):
        status, _, err = lsseg(*predict, name, images, *options)
        assert status == 0, err
    files = sorted((tmp_path / "server").iterdir())
    assert [file.name for file in files] == ["ADE_0.png", "ADE_1.png"]
    for file in files:
        values = np.asarray(Image.open(file))
        assert (values.shape, values.dtype) == ((60, 84), np.uint8)
        own = np.asarray(Image.open(next((tmp_path / "own").glob(f"{file.stem}.png"))))
        assert (values == own + 1).all()  # the server counts classes from 1


def test_where_there_are_no_official_scores(tmp_path, lsseg, cityscapes):
    file = config(tmp_path, "tiny.yaml", "Cityscapes", root=str(cityscapes), partial=True, resize=[32, 32])
    status, _, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=run")
    assert (status, "data.resize must be null, because official scores need" in err) == (1, True)
    file = config(tmp_path, "tiny.yaml", "SyntheticShapes", train_images=4, val_images=1, test_images=1, size=[32, 32])
    status, _, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=other")
    assert (status, "data SyntheticShapes has no official scores; use Cityscapes" in err) == (1, True)
    next((cityscapes / "gtFine/val/bonn").glob("*_instanceIds.png")).unlink()
    file = config(tmp_path, "tiny.yaml", "Cityscapes", root=str(cityscapes), partial=True)
    status, _, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=third")
    assert (status, "Cityscapes' own scores need *_labelIds.png and, beside it," in err) == (1, True)
    # All of it before the training.
    assert not any((tmp_path / name).exists() for name in ("run", "other", "third"))


def test_a_broken_truth_leaves_nothing(tmp_path, lsseg, cityscapes):
    file = config(tmp_path, "tiny.yaml", "Cityscapes", root=str(cityscapes), partial=True)
    next((cityscapes / "gtFine/val/bonn").glob("*_instanceIds.png")).write_bytes(b"")
    status, _, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=run")
    assert (status, "Cityscapes' scripts refuse a file: Unable to load" in err) == (1, True), err
    assert not (tmp_path / "run" / "official").exists()


def test_a_failure_in_a_trial_run_is_one_line(tmp_path, lsseg, cityscapes):
    file = config(tmp_path, "tiny.yaml", "Cityscapes", root=str(cityscapes), partial=True)
    next((cityscapes / "leftImg8bit/train/ulm").glob("*.png")).write_bytes(b"")
    status, _, err = lsseg("fit", "--config", file, "--trainer.default_root_dir=run", "--trainer.fast_dev_run=true")
    assert (status, "cannot decode" in err, "Traceback" in err) == (1, True, False), err


def test_no_server_format(tmp_path, lsseg, cityscapes):
    tiny = HERE / "tiny.yaml"
    assert lsseg("fit", "--config", tiny, "--trainer.default_root_dir=other")[0] == 0
    status, _, err = lsseg(
        *("predict", "--config", tiny, "--ckpt_path", "other/last.ckpt", "--predictions.submission=true"),
        f"--data.images={cityscapes}/leftImg8bit/val",
    )
    assert (status, "SyntheticShapes has no known server format" in err) == (1, True)
