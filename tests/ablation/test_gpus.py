"""Which GPU a run gets, on a machine whose nvidia-smi is made up."""

import os
import threading
import time

import pytest

from lsseg.ablation.gpus import SECONDS, Gpus, visible_gpus
from lsseg.cli import main
from lsseg.errors import InputError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sets free and total MiB of every GPU."""
    answer = tmp_path / "answer"
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def tell(*memory):
        lines = [f"GPU-{i}{i}{i}, {i}, {free}, {total}" for i, (free, total) in enumerate(memory)]
        answer.write_text("\n".join(lines) + "\n")

    return tell


def borrowed(gpus, count, seconds=2.0):
    """What ``count`` runs get; ``None`` for one that still waits."""
    stop, results = threading.Event(), [None] * count

    def borrow(i):
        with gpus.lend(stop) as own:
            results[i] = own
            stop.wait()

    threads = [threading.Thread(target=borrow, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
        thread.join(0.2)
    end = time.monotonic() + seconds
    while None in results and time.monotonic() < end:
        time.sleep(0.05)
    found = list(results)
    stop.set()
    with gpus._changed:
        gpus._changed.notify_all()
    for thread in threads:
        thread.join()
    return found


def test_one_run_has_a_gpu_for_itself(machine):
    machine((40_000, 40_960), (40_500, 40_960))
    gpus = Gpus()
    assert gpus.places == 2
    assert borrowed(gpus, 3) == [["GPU-111"], ["GPU-000"], None]
    assert borrowed(gpus, 2) == [["GPU-111"], ["GPU-000"]]  # given back


def test_small_runs_share_a_gpu(machine):
    machine((40_000, 40_960), (16_000, 16_384))
    gpus = Gpus(memory=12)
    assert gpus.places == 4
    # nvidia-smi's answer does not change here: what a run will take counts from its start.
    assert borrowed(gpus, 5) == [["GPU-000"], ["GPU-000"], ["GPU-111"], ["GPU-000"], None]


def test_what_others_hold_is_not_lent_again(machine):
    """24 GiB of which others hold 5: one run of 10 fits, a second one would have 4 GiB too little."""
    machine((19 * 1024, 24 * 1024))
    assert borrowed(Gpus(memory=10), 2) == [["GPU-000"], None]


def test_a_run_that_has_to_wait_for_others_says_so(machine):
    machine((7000, 8192))
    said = []
    assert borrowed(Gpus(say=said.append), 1, seconds=0.3) == [None]
    assert said == ["waiting for 1 GPU(s) with 7.2 GiB free (--gpu-memory); free now: 6.8 of 8.0 GiB"]


def test_a_gpu_that_does_not_tell_its_memory_is_not_lent(tmp_path, machine):
    machine(("[N/A]", "[N/A]"))
    assert Gpus().places == 0


def test_several_gpus_for_a_run(machine):
    machine((40_000, 40_960), (40_500, 40_960), (40_100, 40_960))
    assert borrowed(Gpus(per_run=2), 2) == [["GPU-111", "GPU-222"], None]


def test_memory_that_others_use_is_waited_for(machine, monkeypatch):
    monkeypatch.setattr("lsseg.ablation.gpus.SECONDS", 0.05)
    machine((3_000, 40_960))
    assert borrowed(Gpus(memory=8), 1, seconds=0.5) == [None]
    gpus = Gpus(memory=8)
    threading.Timer(0.5, machine, [(30_000, 40_960)]).start()
    assert borrowed(gpus, 1, seconds=SECONDS) == [["GPU-000"]]


def test_only_visible_gpus_are_lent(machine, monkeypatch):
    machine((40_000, 40_960), (40_500, 40_960), (40_100, 40_960))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-00")
    assert [gpu.uuid for gpu in visible_gpus()] == ["GPU-000", "GPU-222"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Gpus().places == 0


def test_runs_that_can_never_fit_are_refused(machine):
    machine((40_000, 40_960), (16_000, 16_384))
    with pytest.raises(InputError, match="--gpus-per-run 3 does not fit: the GPUs here are 40 GiB, 16 GiB"):
        Gpus(per_run=3)
    with pytest.raises(InputError, match="--gpu-memory 48 does not fit"):
        Gpus(memory=48)


def test_without_a_gpu_nothing_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert borrowed(Gpus(), 3) == [[], [], []]


def test_options_that_cannot_be(capsys, tmp_path):
    for options, message in {
        ("--jobs", "0"): "--jobs must be more than 0",
        ("--gpu-memory", "-3"): "--gpu-memory must be more than 0",
        ("--gpu-memory", "nan"): "--gpu-memory must be more than 0",
        ("--gpus-per-run", "2", "--launcher", "ray"): "other launchers take --resources",
        ("--sweep", "--launcher", "ray"): "nothing for --launcher",
        ("--resources", "num_cpus=1"): "--resources are for --launcher ray or slurm",
    }.items():
        assert main(["ablate", str(tmp_path / "x.yaml"), *options]) == 1
        assert message in capsys.readouterr().err
