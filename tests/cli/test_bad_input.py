"""What a user's mistake looks like: one line that names the key or the file, and a status that is not 0."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TINY = str(Path(__file__).with_name("tiny.yaml"))


@pytest.fixture
def refused(lsseg, tmp_path):
    """Runs a command that must fail, and gives the last line of what it says."""

    def run(*argv):
        status, _, err = lsseg(*argv)
        assert status == 1
        assert "Traceback" not in err
        return err.strip().splitlines()[-1].removeprefix("lsseg: error: ")

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "Nope"), "model: 'Nope' is no known class"),
        (("--model.lrr", 3), "model: Option 'lrr' is not accepted"),
        (("--model.lr", "fast"), "model.lr: Expected a <class 'float'>. Got value: fast"),
        (("--data.sizee", 3), "data: Option 'sizee' is not accepted"),
        (("--model.network.encoder_name", "resnet19"), "encoder_name: Wrong encoder name `resnet19`"),
        (("--model.network.architecture", "vnet"), "architecture: 'vnet' is unknown; smp has deeplabv3"),
        (("--model", "LevelSetLossTask", "--model.epsilon", 0), "model.epsilon must be positive"),
        (("--model", "LevelSetLossTask", "--model.heaviside", "tanh"), "model.heaviside: Expected a typing.Literal"),
        (("--model.window", 8), "model.window must be at least 32 pixels, not 8"),
        (("--data.difficulty", 7), "data.difficulty must lie between 0 and 1"),
        (("--data.train_images", 0), "the train split of SyntheticShapes is empty"),
        (("--data.test_images", 0, "--test_after_fit", "true"), "the test split of SyntheticShapes is empty"),
        (("--data.train_images", 1), "data.batch_size 2 on 1 process(es) is more than the 1 images"),
        (("--data.batch_size", 0), "data.batch_size must be at least 1, not 0"),
        (("--data.scale", "[2,1]"), "data.scale must be two positive numbers"),
        (
            ("--data", "CamVid", "--data.root", "nowhere"),
            "data.root nowhere is not a folder; `lsseg data camvid` fetches",
        ),
        (("--data", "CamVid"), "no folder data/camvid (set data.root or LSSEG_DATA)"),
        (("--panels.phi_class", "wheel"), "panels.phi_class 'wheel' is no class; the data has background, blob"),
        (("--trainer.max_steps", -1, "--trainer.max_epochs", -1), "set trainer.max_steps or trainer.max_epochs"),
        (("--model.lr", 1e30), "the training loss is not finite (in loss)"),
        (("--model", "LevelSetLossTask", "--model.lr", 1e30), "is not finite (in cross_entropy"),
    ],
)
def test_fit_refuses(refused, tmp_path, arguments, message):
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *arguments)
    assert message in said
    assert not (tmp_path / "run" / "test.json").exists()


def test_nonfinite_loss_names_the_step(refused, tmp_path):
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", "--model.lr", 1e30)
    assert said.startswith("step 1: ")


def test_configuration_files(refused, tmp_path):
    assert "nope.yaml" in refused("fit", "--config", "nope.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1, 2\n")
    assert refused("fit", "--config", broken).startswith(f"{broken} is not YAML: ")
    broken.write_text("modell: 3\n")
    assert "'modell'" in refused("fit", "--config", TINY, "--config", broken)
    network = "{class_path: SmpNet, init_args: {architectur: 3}}"
    broken.write_text(f"model:\n  class_path: SegmentationTask\n  init_args: {{network: {network}}}\n")
    assert refused("fit", "--config", TINY, "--config", broken) == "model.network: Option 'architectur' is not accepted"


def test_a_folder_that_holds_a_run_is_left_alone(lsseg, refused, tmp_path):
    fit = ("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run")
    assert lsseg(*fit)[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "already holds a run" in refused(*fit)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_checkpoints(lsseg, refused, tmp_path, own_folder):
    run = tmp_path / "run"
    assert lsseg("fit", "--config", TINY, "--trainer.default_root_dir", run)[0] == 0
    checkpoint = run / "last.ckpt"
    test = ("test", "--config", TINY, "--trainer.default_root_dir", tmp_path / "test", "--ckpt_path")
    assert refused(*test, "nowhere.ckpt") == "ckpt_path nowhere.ckpt does not exist"
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(checkpoint.read_bytes()[:5000])
    assert refused(*test, torn) == f"ckpt_path {torn} is no checkpoint, or a torn one"
    other_data = ("--data", "FolderSegmentation", "--data.root", own_folder)
    assert refused(*test, checkpoint, *other_data) == "the checkpoint has 7 classes, but the data has 2"
    said = refused(*test, checkpoint, "--model.network.encoder_name", "resnet18")
    assert said.startswith("the checkpoint is of another network: ")
    changed = torch.load(checkpoint, weights_only=True)
    key = next(iter(changed["state_dict"]))
    del changed["state_dict"][key]
    torch.save(changed, torn)
    assert refused(*test, torn) == f"the checkpoint is of another network: the checkpoint has no {key}"


def break_mask(root, value=13):
    path = root / "trainannot" / "0001TP_2.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[3, 4] = value
    Image.fromarray(mask).save(path)


def shrink_mask(root):
    path = root / "trainannot" / "0001TP_2.png"
    Image.open(path).resize((30, 20)).save(path)


def colour_mask(root):
    path = root / "trainannot" / "0001TP_2.png"
    Image.open(path).convert("RGB").save(path)


def tear_image(root):
    path = root / "train" / "0001TP_2.jpg"
    path.write_bytes(path.read_bytes()[:900])


def garble_mask(root):
    (root / "trainannot" / "0001TP_2.png").write_bytes(b"not a picture")


def remove_mask(root):
    (root / "trainannot" / "0001TP_2.png").unlink()


def empty_split(root):
    for path in (root / "train").iterdir():
        path.unlink()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_mask, "0001TP_2.png holds the value 13, which is no class; the classes have 0, 1, 2"),
        (shrink_mask, "0001TP_2: the image is 48×60 but its mask is 20×30"),
        (colour_mask, "0001TP_2.png holds RGB colours; expected an index or palette PNG"),
        (tear_image, "0001TP_2.jpg: "),
        (garble_mask, "cannot decode"),
        (remove_mask, "0001TP_2.jpg has no mask: expected"),
        (empty_split, "there is no image in"),
    ],
)
def test_damaged_data_is_named(refused, tmp_path, camvid, damage, message, workers):
    damage(camvid)
    data = ("--data", "CamVid", "--data.root", camvid, "--data.crop_size", "[32,32]", "--data.num_workers", workers)
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *data)
    assert message in said


def test_images_of_several_sizes_do_not_fit_one_batch(refused, tmp_path, own_folder):
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.scale", "[1,1]")
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *data)
    assert "do not fit into one batch: set data.crop_size" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [one]", "`classes` must list two or more different classes"),
        ("- one\n- two", "`classes` must list two or more different classes"),
        (
            "classes: {a: {value: 1}, b: {value: 1}}",
            "the value of class 'b' must be a number 0..65535 of its own, not 1",
        ),
        ("classes: {a: {color: red}, b: {}}", "the color of class 'a' must be three numbers 0..255, not 'red'"),
        ("classes: [a, b]\nvoid: [1]", "the value 1 is both void and a class"),
        ("classes: [a, b", "is not YAML"),
        ("classes: [a, b]", "holds the value"),
        (None, "classes.yaml is missing: it lists the classes"),
    ],
)
def test_class_lists(refused, tmp_path, own_folder, text, message):
    listing = own_folder / "classes.yaml"
    listing.unlink() if text is None else listing.write_text(text)
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.crop_size", "[32,32]")
    assert message in refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *data)


def test_predict(refused, tmp_path):
    predict = ("predict", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run")
    assert refused(*predict) == "predict needs data.images: a folder of images, or one image"
    assert refused(*predict, "--data.images", "nowhere") == "nowhere is not a folder"
    (tmp_path / "empty").mkdir()
    assert refused(*predict, "--data.images", tmp_path / "empty") == f"there is no image in {tmp_path / 'empty'}"
    for suffix in ("png", "jpg"):
        Image.new("RGB", (40, 40)).save(tmp_path / "empty" / f"twin.{suffix}")
    assert "several files are named twin" in refused(*predict, "--data.images", tmp_path / "empty")
    assert "predictions.phi 'wheel' is no class" in refused(
        *predict, "--data.images", tmp_path / "empty", "--predictions.phi", "[wheel]"
    )


def test_a_full_or_read_only_disk(refused, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    fit = ("fit", "--config", TINY, "--trainer.default_root_dir")
    assert refused(*fit, blocked / "run") == f"Not a directory: {blocked / 'run'}"

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("lsseg.cli.lightning.write_text", full)
    assert refused(*fit, tmp_path / "run").startswith("No space left on device: ")


def test_encoder_weights_that_cannot_be_had(refused, lsseg, tmp_path):
    weights = ("--model.network.encoder_weights", "imagenet")
    run = ("--trainer.default_root_dir", tmp_path / "run")
    assert "encoder_weights: cannot fetch 'imagenet'" in refused("fit", "--config", TINY, *run, *weights)
    assert lsseg("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "trained")[0] == 0
    # A checkpoint replaces them, so nothing is fetched.
    test = ("test", "--config", TINY, "--ckpt_path", tmp_path / "trained" / "last.ckpt", *run)
    assert lsseg(*test, *weights)[0] == 0
