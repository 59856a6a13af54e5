"""Interruptions of every kind, and what is left to go on from."""

import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from lsseg.ablation.runner import Runner
from lsseg.callbacks import StepSeed

TINY = Path(__file__).with_name("tiny.yaml")
NETWORK = yaml.safe_load(TINY.read_text())["model"]["init_args"]["network"]
AVERAGE = {"class_path": "pytorch_lightning.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}


def method(task, network, **options):
    options["network"] = NETWORK
    return f"--model={task}", f"--model.network={json.dumps({'class_path': network, 'init_args': options})}"


# Further options, and the batches before which the run is stopped, one after the other.
CASES = {
    "accumulated": (("--model=LevelSetLossTask", "--trainer.accumulate_grad_batches=2"), (5, 5)),
    "dmls": (method("DMLSTask", "DMLS", steps=2), (3,)),
    "chan_vese": (method("ChanVeseTask", "ChanVeseNet", features=4), (3,)),
    "averaged": ((f"--trainer.callbacks={json.dumps([AVERAGE])}",), (2, 3)),
    "instances": ((), (3,)),
}


@pytest.mark.parametrize(
    "case", [name if name == "accumulated" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_run_that_is_stopped_ends_like_one_that_was_not(lsseg, tmp_path, case):
    options, stops = CASES[case]
    tiny = TINY.with_name("tiny_instances.yaml") if case == "instances" else TINY
    fit = ("fit", "--config", tiny, *options, "--checkpoint_every_n_steps", 1, "--trainer.default_root_dir")
    status, _, err = lsseg(*fit, tmp_path / "whole")
    assert status == 0, err
    seed, checkpoint = StepSeed.on_train_batch_start, tmp_path / "stopped" / "last.ckpt"
    for stop in stops:

        def stop_there(self, trainer, *rest, stop=stop):
            if trainer.fit_loop.epoch_loop.total_batch_idx == stop:
                raise KeyboardInterrupt
            seed(self, trainer, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StepSeed, "on_train_batch_start", stop_there)
            with pytest.raises(SystemExit):
                lsseg(*fit, tmp_path / "stopped", *(("--ckpt_path", checkpoint) if checkpoint.exists() else ()))
    assert torch.load(checkpoint, weights_only=True)["global_step"] < 4
    status, _, err = lsseg(*fit, tmp_path / "stopped", "--ckpt_path", checkpoint)
    assert status == 0, err
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "stopped"))
    assert one["global_step"] == other["global_step"] == 4
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())


class Harmful:
    """A pickle that would run code."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def with_code(path):
    torch.save({"state_dict": Harmful()}, path)


def zeroed_inside(path):
    content = bytearray(path.read_bytes())
    content[200 : len(content) // 2] = bytes(len(content) // 2 - 200)
    path.write_bytes(content)


def another_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "b")


DAMAGES = {
    "with code": with_code,
    "zeroed inside": zeroed_inside,
    "another zip": another_zip,
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:5000]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(trained, lsseg, tmp_path, damage):
    run = tmp_path / "suite" / "ce-seed0"
    shutil.copytree(trained, run)
    DAMAGES[damage](run / "last.ckpt")
    for command in ("test", "fit"):
        arguments = ("--ckpt_path", run / "last.ckpt", "--trainer.default_root_dir", tmp_path / "there")
        status, _, err = lsseg(command, "--config", TINY, *arguments)
        assert status == 1
        assert (
            err.strip()
            .splitlines()[-1]
            .endswith(f"ckpt_path {run / 'last.ckpt'} is not a checkpoint of a run, or is damaged")
        )
        assert "Traceback" not in err
    assert not Path("it-ran").exists()
    said = []
    runner = Runner(run.parent, "suite", None, lambda *line: said.append(line))
    assert runner._checkpoint(run, "ce-seed0") == run / "best.ckpt"
    assert said == [
        ("ce-seed0", f"note: {run / 'last.ckpt'} is not a checkpoint of a run, or is damaged; it is not used")
    ]
    DAMAGES[damage](run / "best.ckpt")
    assert runner._checkpoint(run, "ce-seed0") is None


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # it is a copy
def test_a_job_that_slurm_requeued_goes_on_from_lightnings_checkpoint(trained, lsseg, monkeypatch):
    run = trained
    fit = ("fit", "--config", TINY, "--trainer.default_root_dir", run, "--trainer.max_steps", 6)
    status, _, err = lsseg(*fit)
    assert (status, "already holds a run" in err) == (1, True)
    (run / "last.ckpt").rename(run / "hpc_ckpt_1.ckpt")
    status, _, err = lsseg(*fit)  # not in a job of SLURM
    assert (status, "already holds a run" in err) == (1, True)
    job = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    status, _, err = lsseg(*fit)
    assert status == 0, err
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "train/loss" in row] == [0, 1, 2, 3, 4, 5]
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6


def test_two_trainings_do_not_share_a_folder(lsseg, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    fit = ("fit", "--config", TINY, "--trainer.default_root_dir", folder)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", hold, folder / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        status, _, err = lsseg(*fit)
        other.stdin.close()
    assert status == 1
    assert f"another process is training in {folder}: choose another folder" in err
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert lsseg(*fit, "--trainer.max_steps", 1, "--trainer.val_check_interval", 1)[0] == 0


def test_folders_of_the_same_second_have_other_names(lsseg, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "20260102-030405")
    for _ in range(2):
        fit = ("fit", "--config", TINY, "--trainer.max_steps", 1, "--trainer.val_check_interval", 1)
        assert lsseg(*fit)[0] == 0
    assert lsseg("fit", "--config", TINY, "--data.batch_size", 99)[0] == 1  # leaves nothing behind
    assert {path.name for path in Path("runs").iterdir()} == {"tiny-20260102-030405", "tiny-20260102-030405-2"}


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.read_text())
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "base": ["tiny.yaml"], "variants": [{"name": "ce"}]}))
    return path


def test_a_run_that_another_process_does_is_left_to_it(lsseg, suite, tmp_path):
    locks = tmp_path / "runs" / "tiny" / ".locks"
    locks.mkdir(parents=True)
    with (locks / "ce-seed0").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        status, out, _ = lsseg("ablate", suite)
    assert status == 1
    assert "ce-seed0: another process is at work on it" in out
    assert not list((tmp_path / "runs" / "tiny" / "ce-seed0").iterdir())


def test_a_run_of_an_agent_waits_for_the_other_process(suite, tmp_path, monkeypatch):
    from lsseg.ablation.spec import expand, load_suite

    monkeypatch.setattr("lsseg.ablation.runner.SECONDS", 0.01)
    locks = tmp_path / "tiny" / ".locks"
    locks.mkdir(parents=True)
    other = (locks / "ce-seed0").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    said = []

    def listen(name, line):
        said.append(line)
        other.close()  # it has ended

    monkeypatch.setattr(Runner, "_start", lambda *_: "done")
    runner = Runner(tmp_path / "tiny", "tiny", None, listen, wait=True)
    assert runner.run_all(expand(load_suite(suite)), 1) == {"ce-seed0": "done"}
    assert said == ["note: waiting for another process that is at work on ce-seed0"]


def test_a_folder_that_was_deleted_during_the_run_is_said(suite, lsseg, tmp_path, monkeypatch):
    def start(self, run, folder, *_):
        shutil.rmtree(folder)
        return "failed"

    monkeypatch.setattr(Runner, "_start", start)
    monkeypatch.setenv("COLUMNS", "300")
    status, out, _ = lsseg("ablate", suite, "--root", tmp_path / "runs")
    assert status == 1
    folder = tmp_path / "runs" / "tiny" / "ce-seed0"
    assert f"ce-seed0 failed and left no log: it did not start, or {folder} was deleted" in out


def test_every_process_of_a_run_draws_its_own_numbers():
    def drawn(rank, step):
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=step))
        StepSeed().on_train_batch_start(SimpleNamespace(fit_loop=loop, global_rank=rank, global_step=step), None)
        return float(torch.rand(()))

    with torch.random.fork_rng():
        assert drawn(0, 3) == drawn(0, 3)
        assert len({drawn(rank, step) for rank in (0, 1) for step in (3, 4)}) == 4


def test_further_processes_of_a_run_end_with_the_first():
    """A killed one tells nobody."""
    child = "from lsseg.process import die_with_parent as d; d(); import time; print(1, flush=True); time.sleep(100)"
    start = f"c = s.Popen([sys.executable, '-c', {child!r}]); print(c.pid, flush=True); c.wait()"
    parent = f"import os, subprocess as s, sys; os.environ['LSSEG_DIE_WITH_PARENT'] = str(os.getpid()); {start}"
    first = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    said = {first.stdout.readline().strip() for _ in range(2)}
    (pid,) = said - {"1"}
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    end = time.monotonic() + 20
    while running(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_first_process_of_a_run_asks_for_that(lsseg, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(StepSeed, "on_train_batch_start", lambda *_: asked.append(os.environ["LSSEG_DIE_WITH_PARENT"]))
    assert lsseg("fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run")[0] == 0
    assert set(asked) == {str(os.getpid())}
    assert "LSSEG_DIE_WITH_PARENT" not in os.environ
