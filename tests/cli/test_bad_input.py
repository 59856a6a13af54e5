"""What a user's mistake looks like: one line that names the key or the file, and a status that is not 0."""

import subprocess
import sys
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
        (("--model", "Nope"), "model: 'Nope' is not a known class"),
        (("--model.lrr", 3), "model: Option 'lrr' is not accepted"),
        (("--model.lr", "fast"), "model.lr: expected a number, not fast"),
        (("--data.sizee", 3), "data: Option 'sizee' is not accepted"),
        (("--model.network.encoder_name", "resnet19"), "encoder_name 'resnet19' is unknown; did you mean resnet1"),
        (("--model.network.architecture", "vnet"), "architecture: 'vnet' is unknown; smp has deeplabv3"),
        (("--model", "LevelSetLossTask", "--model.epsilon", 0), "model.epsilon must be positive"),
        (
            ("--model", "LevelSetLossTask", "--model.heaviside", "tanh"),
            "model.heaviside: expected hf, ahf, mahf or ramp, not tanh",
        ),
        (("--panels.images", -3), "panels.images must not be negative, not -3"),
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
        (("--data", "CamVid"), "data.root is not set, and data/camvid is not a folder (set root or LSSEG_DATA)"),
        (("--panels.phi_class", "wheel"), "panels.phi_class 'wheel' is not a class; the data has background, blob"),
        (("--trainer.max_steps", -1, "--trainer.max_epochs", -1), "set trainer.max_steps or trainer.max_epochs"),
        (("--model.lr", -1), "model.lr must not be negative, not -1"),
        (("--seed_everything", "abc"), "seed_everything: expected a whole number"),
        (("--trainer.val_check_interval", 0), "trainer.val_check_interval must be above 0"),
        (("--trainer.accumulate_grad_batches", 0), "trainer.accumulate_grad_batches must be above 0"),
        (("--model.momentum", 1), "model.momentum must lie in [0, 1), not 1"),
        (("--data.num_workers", -1), "data.num_workers must be at least 0, not -1"),
        (("--data.crop_size", "[0,0]"), "data.crop_size must be two positive numbers (height, width), not [0, 0]"),
        (
            ("--data", "ObjectClasses", "--data.objects", "PennFudan", "--data.objects.root", "nowhere"),
            "data.objects.root nowhere is not a folder",
        ),
        (
            (
                *("--model=DMLSTask", "--model.network=DMLS", "--model.network.network=SmpNet"),
                "--model.network.network.encoder_name=resnet19",
            ),
            "model.network.network.encoder_name 'resnet19' is unknown",
        ),
        (("--data.val_images", 0), "the val split of SyntheticShapes is empty"),
        (("--seed_everything", -3), "seed_everything must be a whole number from 0 to 4294967295, not -3"),
        (("--trainer.accelerator", "foo"), "accelerator"),
        (("--trainer.val_check_interval", 2000), "val_check_interval"),
        (("--model.criterion", "nope.Loss"), "model.criterion: Problem with given class_path 'nope.Loss': "),
        (("--model.lr", 1e30), "the training loss is not finite (in loss)"),
        (("--model", "LevelSetLossTask", "--model.lr", 1e30), "is not finite (in cross_entropy"),
    ],
)
def test_fit_refuses(refused, tmp_path, arguments, message):
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *arguments)
    assert message in said
    # Nothing half-done is left; a training that broke down leaves its log.
    assert (tmp_path / "run" / "metrics.jsonl").exists() == (tmp_path / "run").exists() == (1e30 in arguments)


@pytest.mark.parametrize("folder", [(), ("--trainer.default_root_dir", "a/b/run")])
def test_a_run_that_does_not_begin_leaves_no_folder_above_it_either(refused, tmp_path, folder):
    assert "val split" in refused("fit", "--config", TINY, "--data.val_images", 0, *folder)
    assert not list(tmp_path.iterdir())


def test_nonfinite_loss_names_the_step(refused, tmp_path):
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", "--model.lr", 1e30)
    assert said.startswith("step 1: ")


def test_a_training_that_breaks_down_keeps_its_log_wherever_it_is(refused, tmp_path):
    run = tmp_path / "wandb" / "run"
    refused("fit", "--config", TINY, "--trainer.default_root_dir", run, "--model.lr", 1e30)
    assert (run / "metrics.jsonl").is_file()


def test_configuration_files(refused, tmp_path):
    assert "nope.yaml" in refused("fit", "--config", "nope.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1, 2\n")
    assert refused("fit", "--config", broken).startswith(f"{broken} is not YAML: ")
    broken.write_text("trainer: {max_steps: 2}\nmodel: SegmentationTask\ntrainer:\n  max_epochs: 3\n")
    assert refused("fit", "--config", broken) == f"{broken}, line 3: the key trainer is given twice"
    broken.write_text("modell: 3\n")
    assert "'modell'" in refused("fit", "--config", TINY, "--config", broken)
    network = "{class_path: SmpNet, init_args: {architectur: 3}}"
    broken.write_text(f"model:\n  class_path: SegmentationTask\n  init_args: {{network: {network}}}\n")
    said = refused("fit", "--config", TINY, "--config", broken)
    assert said == "model.network: Option 'architectur' is not accepted; did you mean architecture?"


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
    assert refused(*test, "nowhere.ckpt") == "ckpt_path nowhere.ckpt is not a file"
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(checkpoint.read_bytes()[:5000])
    assert refused(*test, torn) == f"ckpt_path {torn} is not a checkpoint of a run, or is damaged"
    other_data = ("--data", "FolderSegmentation", "--data.root", own_folder)
    assert refused(*test, checkpoint, *other_data) == "the checkpoint has 7 classes, but the data has 2"
    said = refused(*test, checkpoint, "--model.network.encoder_name", "resnet18")
    assert said.startswith("the checkpoint is from another network: ")
    changed = torch.load(checkpoint, weights_only=True)
    key = next(iter(changed["state_dict"]))
    del changed["state_dict"][key]
    torch.save(changed, torn)
    assert refused(*test, torn) == f"the checkpoint is from another network: the checkpoint has no {key}"


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


def remove_test_mask(root):
    (root / "testannot" / "Seq05VD_7.png").unlink()


def empty_split(root):
    for path in (root / "train").iterdir():
        path.unlink()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_mask, "0001TP_2.png holds the value 13, which is not a class; expected 0, 1, 2"),
        (shrink_mask, "0001TP_2.jpg is 48×60, but its mask"),
        (colour_mask, "0001TP_2.png holds RGB colours; expected an index or palette PNG"),
        (tear_image, "0001TP_2.jpg: "),
        (garble_mask, "cannot decode"),
        (remove_mask, "0001TP_2.jpg has no mask: expected"),
        (remove_test_mask, "Seq05VD_7.jpg has no mask: expected"),
        (empty_split, "there is no image in"),
    ],
)
def test_damaged_data_is_named(refused, tmp_path, camvid, damage, message, workers):
    damage(camvid)
    data = ("--data", "CamVid", "--data.root", camvid, "--data.crop_size", "[32,32]", "--data.num_workers", workers)
    run = ("--trainer.default_root_dir", tmp_path / "run", "--test_after_fit", "true")
    said = refused("fit", "--config", TINY, *run, *data)
    assert message in said
    assert not (tmp_path / "run" / "last.ckpt").exists()  # found before, or while, training, not after it


def test_masks_without_a_label(refused, tmp_path, camvid):
    for path in (camvid / "valannot").iterdir():
        Image.fromarray(np.full((48, 60), 11, np.uint8)).save(path)
    data = ("--data", "CamVid", "--data.root", camvid, "--data.crop_size", "[32,32]", "--data.num_workers", 0)
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *data)
    assert said == "the val split cannot be scored: every pixel of its masks is void"


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_of_the_same_name(refused, tmp_path, own_folder, kind):
    path = next((own_folder / kind).iterdir())
    Image.open(path).save(path.with_suffix(".bmp"))
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.crop_size", "[32,32]")
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *data)
    assert f"{kind} has several files named {path.stem}" in said


def test_a_network_that_cannot_train_on_one_image(refused, tmp_path):
    network = ("--model.network.architecture", "deeplabv3plus", "--model.network.decoder", "{decoder_channels: 16}")
    said = refused(
        "fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *network, "--data.batch_size", 1
    )
    assert said.startswith("this network cannot train on one image of this size at a time: data.batch_size must be 2")


def test_images_of_several_sizes_do_not_fit_one_batch(refused, tmp_path, own_folder):
    data = ("--data", "FolderSegmentation", "--data.root", own_folder, "--data.scale", "[1,1]")
    said = refused("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run", *data)
    assert "do not fit into one batch: set data.crop_size" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [one]", "`classes` must list two or more different classes"),
        ("- one\n- two", "expected the keys `classes` and, optionally, `void`, not ['one', 'two']"),
        (
            "classes: {a: {value: 1}, b: {value: 1}}",
            "the value of class 'b' must be a number 0..65535 that no other class has, not 1",
        ),
        ("classes: {a: {color: red}, b: {}}", "the color of class 'a' must be three numbers 0..255, not 'red'"),
        ("classes: [a, b]\nvoid: 1", "the value 1 is both void and a class"),
        ("classes: [a, b]\nvoid: [x]", "void must list numbers 0..65535, not 'x'"),
        ("classes: [a, b]\nviod: [7]", "expected the keys `classes` and, optionally, `void`"),
        ("classes: [a, b, a]", "the class 'a' is listed twice"),
        (
            "classes: [no, b]",
            "the name of a class must be non-empty text, not False (put words such as no, yes, null in quotes)",
        ),
        ("classes: [{name: a}, b]", "the name of a class must be non-empty text, not {'name': 'a'}"),
        ("classes: {a: {value: true}, b: 1}", "the value of class 'a' must be a number"),
        ("classes: {a: {colour: [1, 2, 3]}, b: 1}", "class 'a' may have a value and a color"),
        ("classes: {a: [1], b: 1}", "class 'a' may have a value and a color, not [1]"),
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


def test_predict(lsseg, refused, tmp_path):
    assert lsseg("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run")[0] == 0
    predict = ("predict", "--config", TINY, "--ckpt_path", tmp_path / "run" / "last.ckpt")
    assert refused(*predict) == "predict needs data.images: a folder of images, or one image"
    assert refused(*predict, "--data.images", "nowhere").startswith("data.images nowhere does not exist; give")
    assert not list((tmp_path / "run").glob("predict*"))
    photos = tmp_path / "photos"
    photos.mkdir()
    assert refused(*predict, "--data.images", photos) == f"data.images: there is no image in {photos}"
    Image.new("RGB", (40, 40)).save(photos / "one.png")
    before = (photos / "one.png").read_bytes()
    said = refused(*predict, "--data.images", photos / "one.png", "--predictions.output", photos)
    assert said == f"predictions.output {photos} holds the images themselves; choose another folder"
    assert (photos / "one.png").read_bytes() == before
    assert "predictions.phi 'wheel' is not a class" in refused(
        *predict, "--data.images", photos, "--predictions.phi", "[wheel]"
    )
    Image.new("RGB", (40, 40)).save(photos / "one_overlay.png")
    assert "the overlay of one and the labels of one_overlay would have the same file name" in refused(
        *predict, "--data.images", photos
    )
    Image.new("RGB", (40, 40)).save(photos / "one.jpg")  # now the suffix belongs to the name
    status, _, err = lsseg(*predict, "--data.images", photos, "--predictions.output", tmp_path / "out")
    assert status == 0, err
    assert {"one.jpg.png", "one.png.png", "one_overlay.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_random_weights_are_not_scored(refused, command):
    assert refused(command, "--config", TINY) == (
        f"{command} needs --ckpt_path: the checkpoint of a run, such as RUN/last.ckpt"
    )


def test_a_full_or_read_only_disk(refused, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    fit = ("fit", "--config", TINY, "--trainer.default_root_dir")
    assert refused(*fit, blocked / "run") == f"Not a directory: {blocked / 'run'}"

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("torch.save", full)
    assert refused(*fit, tmp_path / "run").startswith("No space left on device: ")
    assert not list((tmp_path / "run").glob("*.ckpt*"))
    assert not list((tmp_path / "run").glob(".*.part"))


def test_output_that_nobody_reads_on():
    suite = Path(__file__).parents[2] / "experiments/kim2019/table5.yaml"
    command = f"{sys.executable} -m lsseg ablate {suite} --dry-run"
    done = subprocess.run(["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_encoder_weights_that_cannot_be_had(refused, lsseg, tmp_path):
    weights = ("--model.network.encoder_weights", "imagenet")
    run = ("--trainer.default_root_dir", tmp_path / "run")
    assert "encoder_weights: cannot fetch 'imagenet'" in refused("fit", "--config", TINY, *run, *weights)
    assert lsseg("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "trained")[0] == 0
    # A checkpoint replaces them, so nothing is fetched.
    test = ("test", "--config", TINY, "--ckpt_path", tmp_path / "trained" / "last.ckpt", *run)
    assert lsseg(*test, *weights)[0] == 0


@pytest.mark.parametrize(("task", "right"), [("DMLSTask", "DMLS"), ("ChanVeseTask", "ChanVeseNet")])
def test_a_method_without_its_network_is_refused(refused, tmp_path, task, right):
    said = refused("fit", "--config", TINY, "--model", task, "--trainer.default_root_dir", tmp_path / "run")
    assert said == f"model.network must be {right}, not SmpNet"
    assert not (tmp_path / "run").exists()
