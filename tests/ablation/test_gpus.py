"""Which GPU a run gets, on a machine whose nvidia-smi is made up."""

import os
from contextlib import ExitStack

import pytest

from lsseg.ablation.runner import Gpus, visible_gpus
from lsseg.cli import main
from lsseg.errors import InputError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets how many GPUs there are."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def tell(count):
        program.write_text("#!/bin/sh\n" + "".join(f"echo GPU-{i}{i}{i}\n" for i in range(count)))
        program.chmod(0o755)

    return tell


def lent(gpus):
    """What as many runs get as are done at a time."""
    with ExitStack() as runs:
        return [runs.enter_context(gpus.lend()) for _ in range(gpus.jobs)]


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (2, {}, ["000", "111"]),
        (2, {"jobs": 1}, ["000"]),
        (2, {"jobs": 5}, ["000", "111", "000", "111", "000"]),  # runs share them
        (3, {"per_run": 2}, ["000+111"]),
        (4, {"per_run": 2}, ["000+111", "222+333"]),
    ],
)
def test_gpus_are_lent_in_turn_and_given_back(machine, count, options, expected):
    machine(count)
    gpus = Gpus(**options)
    wanted = [[f"GPU-{name}" for name in group.split("+")] for group in expected]
    assert lent(gpus) == wanted
    assert sorted(lent(gpus)) == sorted(wanted)


def test_only_visible_gpus_are_lent(machine, monkeypatch):
    machine(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-00,2,-1,1")
    assert visible_gpus() == ["2", "GPU-00"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lent(Gpus()) == [[]]


def test_more_gpus_than_there_are_is_refused(machine):
    machine(2)
    with pytest.raises(InputError, match="--gpus-per-run is 3, but this machine has 2 GPUs"):
        Gpus(per_run=3)


def test_without_a_gpu_a_run_gets_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lent(Gpus()) == [[]]
    assert lent(Gpus(jobs=2)) == [[], []]
    with pytest.raises(InputError, match="this machine has 0 GPUs"):
        Gpus(per_run=2)


def test_options_that_cannot_be(capsys, tmp_path):
    for options, message in {
        ("--jobs", "0"): "--jobs must be more than 0",
        ("--gpus-per-run", "-3"): "--gpus-per-run must be more than 0",
        ("--gpus-per-run", "2", "--launcher", "ray"): "with another launcher use --resources",
        ("--sweep", "--launcher", "ray"): "cannot be used with --launcher",
        ("--sweep", "--jobs", "2"): "cannot be used with --jobs",
        ("--resources", "num_cpus=1"): "--resources needs --launcher ray or slurm",
    }.items():
        assert main(["ablate", str(tmp_path / "x.yaml"), *options]) == 1
        assert message in capsys.readouterr().err
