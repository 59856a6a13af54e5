"""Two processes on one machine (DDP over gloo) against one."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only

from lsseg.cli import main
from lsseg.files import read_jsonl

TINY = Path(__file__).with_name("tiny.yaml")


def lsseg_process(*argv):
    """A process of its own, which may start others."""
    command = [sys.executable, "-m", "lsseg", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr


def two_ranks(*argv):
    """A command on two ranks, forks of this process: to start them takes longer than all that they do."""
    port = free_port()
    ranks = [
        multiprocessing.get_context("fork").Process(target=be_rank, args=(rank, port, list(map(str, argv))))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(600)
    assert [process.exitcode for process in ranks] == [0, 0]


def be_rank(rank, port, argv):
    """As a launcher of processes tells each of them."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "NODE_RANK": 0, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    rank_zero_only.rank = rank  # which Lightning looked up when it was imported
    sys.exit(main(argv))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def alone(lsseg):
    """The same as one process, this one."""

    def run(*argv):
        status, out, err = lsseg(*argv)
        assert status == 0, out + err

    return run


pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
LOSSES = ("val/loss", "val/cross_entropy", "val/level_set")


@pytest.mark.slow
def test_ddp_trains_and_scores_like_one_process(tmp_path, alone):
    """Level-set loss on 2 ranks × 2 images, with mixed precision, accumulated and clipped gradients, averaged weights;
    the test, on an odd number of images, gives the same to the last digit.
    """
    ddp = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    run = ("--config", TINY, "--model", "LevelSetLossTask", "--trainer.default_root_dir")
    averaged = {"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
    keys = ("--trainer.precision=bf16-mixed", "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=1.0")
    lsseg_process("fit", *run, tmp_path / "ddp", *ddp, *keys, f"--trainer.callbacks={json.dumps([averaged])}")
    checkpoint = ("--ckpt_path", tmp_path / "ddp" / "last.ckpt")
    lsseg_process("test", *run, tmp_path / "two", *checkpoint, *ddp)
    alone("test", *run, tmp_path / "one", *checkpoint)
    one, two = (json.loads((tmp_path / name / "test.json").read_text()) for name in ("one", "two"))
    assert one["scores"] == two["scores"]
    assert one["test_images"] == two["test_images"] == 3
    for name, start, options in (("one", alone, ()), ("two", two_ranks, ddp)):
        start("validate", *run, tmp_path / f"{name}-val", *checkpoint, *options, "--data.val_images", 3)
    one, two = (read_jsonl(tmp_path / f"{name}-val" / "metrics.jsonl")[-1] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():  # losses are sums in another order
        assert two[key] == (pytest.approx(value, rel=1e-6) if key in LOSSES else value), key
    assert torch.load(checkpoint[1], weights_only=True)["global_step"] == 4
    assert not Path("runs").exists()  # the second process made no folder of its own


@pytest.mark.slow
def test_a_run_of_a_suite_may_be_several_processes(tmp_path, alone):
    suite = {
        "name": "pair",
        "base": [str(TINY)],
        "set": {"trainer.devices": 2, "trainer.strategy": "ddp"},
        "seeds": [3],
    }
    suite["variants"] = [{"name": "ls", "set": {"model": "LevelSetLossTask"}}]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    lsseg_process("ablate", tmp_path / "suite.yaml", "--root", tmp_path)
    run = tmp_path / "pair" / "ls-seed3"
    assert len(read_jsonl(run / "metrics.jsonl")) == 6 + 1  # by one process only
    again = ("--config", run / "config.yaml", "--trainer.devices", 1, "--trainer.strategy", "auto")
    alone("test", *again, "--ckpt_path", run / "last.ckpt", "--trainer.default_root_dir", tmp_path / "one")
    one, two = (json.loads((folder / "test.json").read_text()) for folder in (tmp_path / "one", run))
    assert one["scores"] == two["scores"]


@pytest.mark.slow
def test_two_nodes_of_torchrun_train_and_score_like_one_process(tmp_path, alone):
    run = ("--config", TINY, "--trainer.default_root_dir")
    port = free_port()
    fit = ("-m", "lsseg", "fit", *run, tmp_path / "two", "--test_after_fit=true")
    fit += ("--trainer.num_nodes", 2, "--trainer.devices", 1)
    nodes = []
    for number in range(2):
        where = ("--nnodes", 2, "--node-rank", number, "--nproc-per-node", 1, "--master-addr", "127.0.0.1")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *where,
            "--master-port",
            port,
            *fit,
        ]
        nodes.append(subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [node.communicate(timeout=600)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    alone("test", *run, tmp_path / "one", "--ckpt_path", tmp_path / "two" / "last.ckpt")
    one, two = (json.loads((tmp_path / name / "test.json").read_text()) for name in ("one", "two"))
    assert one["scores"] == two["scores"]


def test_processes_of_torchrun_need_a_folder(lsseg, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    status, _, err = lsseg("fit", "--config", TINY)
    assert status == 1
    assert "trainer.default_root_dir must be set" in err


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_it_goes_on(tmp_path):
    fit = (
        "fit",
        "--config",
        TINY,
        "--trainer.devices",
        2,
        "--trainer.strategy",
        "ddp",
        "--checkpoint_every_n_steps",
        5,
    )
    run = (
        *fit,
        "--trainer.default_root_dir",
        tmp_path / "run",
        "--trainer.val_check_interval",
        2,
        "--trainer.max_steps",
    )
    command = [sys.executable, "-m", "lsseg", *map(str, (*run, 100_000))]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "run" / "last.ckpt"
    end = time.monotonic() + 300
    while not checkpoint.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    others = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    ranks = [int(pid) for pid in others if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(ranks[0], signal.SIGKILL)
    _, said = first.communicate(timeout=120)
    assert first.returncode != 0
    assert "another process of this run ended" in said or "Forcefully terminating" in said
    assert "Traceback" not in said
    steps = torch.load(checkpoint, weights_only=True)["global_step"]
    lsseg_process(*run, steps + 3, "--ckpt_path", checkpoint)
    assert torch.load(checkpoint, weights_only=True)["global_step"] == steps + 3


@pytest.mark.slow
def test_two_processes_share_what_is_predicted(tmp_path, alone):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abc":
        Image.fromarray(np.full((40, 50, 3), ord(name), np.uint8)).save(photos / f"{name}.png")
    alone("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run")
    predict = ("predict", "--config", TINY, "--ckpt_path", tmp_path / "run" / "last.ckpt", "--data.images")
    alone(*predict, photos, "--predictions.output", tmp_path / "one")
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.default_root_dir")
    lsseg_process(*predict, photos, "--predictions.output", tmp_path / "two", *ddp, tmp_path / "out")
    two_ranks(*predict, photos / "a.png", "--predictions.output", tmp_path / "single", *ddp, tmp_path / "out")
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in (tmp_path / "single").iterdir()) == ["a.png", "a_overlay.png"]


FROZEN = """
from lsseg.models import ChanVeseNet, SmpNet
from lsseg.models.dmls import batch_norms


class Frozen:
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        for norm in batch_norms(self):
            norm.eval()
        return self


class FrozenNet(Frozen, SmpNet):
    pass


class FrozenChanVeseNet(Frozen, ChanVeseNet):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["LevelSetLossTask", "DMLSTask", "ChanVeseTask"])
def test_two_processes_learn_what_one_learns_with_twice_the_batch(tmp_path, alone, method):
    """The same losses, step by step, and the same weights: the mean over the valid pixels of both ranks, weights of
    classes counted once, every parameter used. The first logs cross-entropy as well. Batch-norm is frozen: its
    statistics are each rank's own.
    """
    (tmp_path / "frozen.py").write_text(FROZEN)
    tiny = yaml.safe_load(TINY.read_text())
    plain = {"class_path": "frozen.FrozenNet", "init_args": tiny["model"]["init_args"]["network"]["init_args"]}
    wrapped = {
        "DMLSTask": {"class_path": "DMLS", "init_args": {"steps": 2, "batch_norm": "frozen", "network": plain}},
        "ChanVeseTask": {"class_path": "frozen.FrozenChanVeseNet", "init_args": {"features": 8, "network": plain}},
    }
    options = {"network": wrapped.get(method, plain), "lr": 0.01, "optimizer": "sgd"}
    config = tmp_path / "config.yaml"
    model = {"class_path": method, "init_args": options}
    config.write_text(yaml.safe_dump({**tiny, "model": model}, sort_keys=False))
    run = ("fit", "--config", config, "--trainer.default_root_dir")
    alone(*run, tmp_path / "one", "--data.batch_size=2")
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp")
    two_ranks(*run, tmp_path / "two", "--data.batch_size=1", *ddp)
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in one if "train/loss" in row] == [0, 1, 2, 3]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    one, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5, msg=key)
    if method != "LevelSetLossTask":  # which is scored above
        test = ("test", "--config", config, "--ckpt_path", tmp_path / "one" / "last.ckpt", "--trainer.default_root_dir")
        alone(*test, tmp_path / "scored-one")
        two_ranks(*test, tmp_path / "scored-two", *ddp)
        scores = [json.loads((tmp_path / f"scored-{n}" / "test.json").read_text())["scores"] for n in ("one", "two")]
        assert scores[0] == scores[1]


@pytest.mark.slow
def test_instances_on_two_processes_are_scored_like_on_one(tmp_path, alone):
    """Uneven shares, a rank whose only test image is a copy, a training without and with a checkpoint."""
    tiny = TINY.with_name("tiny_instances.yaml")
    ddp = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    run = ("--config", tiny, "--trainer.default_root_dir")
    lsseg_process("fit", *run, tmp_path / "ddp", *ddp)
    checkpoint = ("--ckpt_path", tmp_path / "ddp" / "last.ckpt")
    for images in (3, 1):
        number = ("--data.test_images", images)
        two_ranks("test", *run, tmp_path / f"two{images}", *checkpoint, *ddp, *number)
        alone("test", *run, tmp_path / f"one{images}", *checkpoint, *number)
        one, two = (json.loads((tmp_path / f"{n}{images}" / "test.json").read_text()) for n in ("one", "two"))
        assert one["scores"] == two["scores"]
        assert one["test_images"] == two["test_images"] == images
    assert torch.load(checkpoint[1], weights_only=True)["global_step"] == 4
