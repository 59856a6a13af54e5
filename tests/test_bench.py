"""Every benchmark, made tiny: what it prints and writes, not how fast it is."""

import json

import pytest

from lsseg.bench import harness
from lsseg.bench.command import BENCHMARKS

NET = ["--encoder", "tu-test_resnet.r160_in1k"]
TINY = {
    "losses": ["--shape", 1, 3, 4, 8, 10, "--busy", 1],
    "distances": ["--size", 24, 30, "--classes", 3],
    "segment": ["--size", 24, 30],
    "chan_vese": ["--objects", 2, "--features", 4, "--size", 12],
    "dmls": ["--classes", 3, "--size", 32, 40, "--steps", 2, *NET],
    "instances": ["--size", 64, 96, "--objects", 3, *NET],
    "methods": ["--shape", 1, 3, 32, 40, *NET],
    "data": ["--size", 64, 96, "--crop", 32, 32, "--images", 4, "--workers", 0, "--batch", 2],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_prints_and_writes_its_figures(name, lsseg, tmp_path, monkeypatch):
    # A process for each case takes seconds; what it would do is done below.
    monkeypatch.setattr(harness, "in_fresh_process", lambda argv, case: 10**6)
    status, out, err = lsseg("bench", name, *TINY[name], "--repeats", 1, "--output", "figures.json")
    assert status == 0, err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["command"].startswith(f"lsseg bench {name}")
    assert figures["time_ratios"][BENCHMARKS[name].baseline] == 1
    assert len(out.splitlines()) > 4
    if name == "dmls":
        one, two = figures["costs"]["DMLS, one step"], figures["costs"]["DMLS"]
        assert one["parameters"] < two["parameters"] < 1.01 * one["parameters"]  # the feedback's kernel
        assert 1.9 < two["gflops"] / one["gflops"] < 2.1
    if name == "data":
        assert "Images per second, for 4 images: decoding " in out
        assert figures["images_per_second"]["loader"] > 0
    status, out, err = lsseg("bench", name, *TINY[name], "--memory-of", list(BENCHMARKS[name].cases)[-1])
    assert status == 0, err
    assert int(out) >= 0


def test_all_runs_every_benchmark(lsseg, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.Benchmark, "run", lambda self, options, argv: {"argv": argv})
    status, _, err = lsseg("bench", "all", "--output", "all.json")
    assert status == 0, err
    figures = json.loads((tmp_path / "all.json").read_text())
    assert {name: figures[name]["argv"] for name in BENCHMARKS} == {n: [n, "--device", "cpu"] for n in BENCHMARKS}


def test_bad_options_are_one_line(lsseg):
    busy = ["losses", "--busy", -1]
    for options in (["instances", "--size", 8, 8], ["losses", "--repeats", 0], ["data", "--workers", -1], busy):
        status, _, err = lsseg("bench", *options)
        assert (status, err.count("\n"), "must be" in err) == (1, 1, True), err
