"""Trained networks as files: what they compute is what the network computes."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lsseg import load_run

TINY = Path(__file__).with_name("tiny.yaml")
NETWORK = yaml.safe_load(TINY.read_text())["model"]["init_args"]["network"]
METHODS = {
    "LevelSetLossTask": NETWORK,
    "DMLSTask": {"class_path": "DMLS", "init_args": {"steps": 2, "network": NETWORK}},
    "ChanVeseTask": {"class_path": "ChanVeseNet", "init_args": {"features": 4, "network": NETWORK}},
}
onnx = pytest.mark.extra("onnx")


def trained(lsseg, tmp_path, method):
    content = yaml.safe_load(TINY.read_text())
    content["model"] = {"class_path": method, "init_args": {"network": METHODS[method]}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    status, _, err = lsseg("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    assert status == 0, err
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize(
    "method", [name if name == "ChanVeseTask" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_file_computes_what_its_network_does(lsseg, tmp_path, method):
    run = trained(lsseg, tmp_path, method)
    file = tmp_path / "net.pt2"
    status, out, err = lsseg("export", run, file, "--size", "50", "66", "--batch", "2")
    assert status == 0, err
    assert "its scores differ by at most" in out
    image = torch.rand(2, 3, 50, 66)
    with torch.no_grad():
        expected = load_run(run).task.infer(image)
        torch.testing.assert_close(torch.export.load(file).module()(image), expected, rtol=1e-5, atol=1e-5)
    if method != "LevelSetLossTask":
        status, _, err = lsseg("export", run, tmp_path / "net.onnx", "--size", "64", "64")
        assert status == 1
        assert "ONNX does not know the level-set evolution (lsseg." in err
    assert sorted(path.suffix for path in tmp_path.glob("*net*")) == [".pt2"]


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("name", ["net.pt2", pytest.param("net.onnx", marks=onnx)])
def test_a_full_disk_is_told_with_the_files_name_and_leaves_nothing(trained_once, lsseg, tmp_path, small_disk, name):
    with small_disk(100_000):
        status, _, err = lsseg("export", trained_once, tmp_path / name)
    assert (status, err.count("\n"), str(tmp_path / name) in err.replace("\n", "")) == (1, 1, True), err
    assert not list(tmp_path.glob("*net*"))


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize(
    ("data", "size"),
    [({}, (64, 64)), ({"crop_size": [48, 80]}, (48, 80)), ({"crop_size": [48, 80], "resize": [96, 64]}, (96, 64))],
)
def test_the_size_is_the_runs_unless_it_is_given(trained_once, lsseg, tmp_path, data, size):
    run = tmp_path / "run"
    shutil.copytree(trained_once, run)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["data"]["init_args"].update(data)
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    (run / "last.ckpt").rename(run / "other.ckpt")
    status, out, err = lsseg("export", run, tmp_path / "net.pt2", "--checkpoint", "other.ckpt")
    assert status == 0, err
    assert f"for images of {size[0]}×{size[1]}; " in out
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.rand(1, 3, *size)).shape == (1, 7, *size)


def test_a_run_without_a_size_needs_one(trained_once, lsseg, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_once, run)
    content = yaml.safe_load((run / "config.yaml").read_text())
    del content["data"]["init_args"]["size"]
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    status, _, err = lsseg("export", run, tmp_path / "net.pt2")
    assert (status, err.rstrip().endswith("neither data.resize nor data.crop_size: set --size")) == (1, True), err
    assert (
        lsseg("export", "nowhere", "a.pt2")[2] == "lsseg: error: nowhere has no config.yaml: expected a finished run\n"
    )


@onnx
@pytest.mark.filterwarnings("ignore")
def test_onnx_runs_without_torch(lsseg, tmp_path):
    import onnxruntime

    run = trained(lsseg, tmp_path, "LevelSetLossTask")
    status, _, err = lsseg("export", run, tmp_path / "net.onnx", "--size", "64", "96")
    assert status == 0, err
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = load_run(run).task.infer(image)
    found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [path.name for path in tmp_path.glob("*net*")] == ["net.onnx"]  # nothing beside it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "a.onnx", "--size", "8", "8"), "nowhere has no config.yaml"),
        (("nowhere", "a.pth", "--size", "8", "8"), "a.pth must end in .onnx or .pt2"),
        (("nowhere", "none/a.pt2", "--size", "8", "8"), "none is not a folder"),
        (("nowhere", "a.pt2", "--size", "0", "8"), "--batch and --size must be at least 1"),
        (("nowhere", "there.pt2", "--size", "8", "8"), "there.pt2 is a folder: give a file"),
    ],
)
def test_what_cannot_be_exported(lsseg, arguments, message):
    Path("there.pt2").mkdir()
    status, _, err = lsseg("export", *arguments)
    assert status == 1
    assert message in err


def test_a_network_that_cannot_be_traced_is_named(lsseg, tmp_path, monkeypatch):
    (tmp_path / "branches.py").write_text(
        "from lsseg.models import SmpNet\n"
        "class Branches(SmpNet):\n"
        "    def forward(self, image):\n"
        "        output = super().forward(image)\n"
        "        return output if image.sum() > 0 else output._replace(logits=-output.logits)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "SegmentationTask", {**NETWORK, "class_path": "branches.Branches"})
    run = trained(lsseg, tmp_path, "SegmentationTask")
    status, _, err = lsseg("export", run, tmp_path / "net.pt2", "--size", "64", "64")
    assert status == 1
    assert err.strip().splitlines()[-1].startswith("lsseg: error: torch.export cannot take Branches: ")
    assert not list(tmp_path.glob("*net.pt2"))
