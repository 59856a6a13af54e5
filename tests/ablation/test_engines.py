"""The same suite on Ray, and as submitit's jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lsseg.ablation.command import _resources
from lsseg.ablation.engines import ENGINES as ENGINES_OF_LSSEG
from lsseg.ablation.engines import Engine, run_elsewhere
from lsseg.ablation.spec import expand, load_suite
from lsseg.errors import InputError

TINY = Path(__file__).parents[1] / "cli" / "tiny.yaml"
ENGINES = {"ray": ["num_cpus=1"], "slurm": ["cluster=local", "timeout_min=10"]}


def ablate(suite, *options):
    command = [sys.executable, "-m", "lsseg", "ablate", str(suite), *options]
    environment = {**os.environ, "COLUMNS": "160", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def write_suite(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.read_text())
    variants = [{"name": "ce"}, {"name": "after", "start": "ce"}, {"name": "diverges", "set": {"model.lr": 1e30}}]
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"name": "tiny", "base": ["tiny.yaml"], "variants": variants}))
    return suite


def launched_only(engine):
    return pytest.mark.extra(engine)


def launched_by(engine):
    return pytest.param(engine, marks=launched_only(engine))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [launched_by(name) for name in ENGINES])
def test_an_engine_does_what_the_local_runner_does(engine, tmp_path, lsseg):
    suite = write_suite(tmp_path)
    fit = ("fit", "--config", tmp_path / "tiny.yaml", "--test_after_fit", "true")
    assert lsseg(*fit, "--trainer.default_root_dir", "local")[0] == 0
    options = ("--root", "elsewhere", "--launcher", engine, "--resources", *ENGINES[engine])
    done = ablate(suite, *options)
    folder = tmp_path / "elsewhere" / "tiny"
    assert done.returncode == 1, done.stderr
    assert "after-seed0: done" in done.stdout
    assert "diverges-seed0 failed; the last lines of" in done.stdout
    assert "the training loss is not finite" in done.stdout
    assert "1 of 3 runs are not finished" in (folder / "results.md").read_text()
    scores = [
        json.loads((run / "test.json").read_text())["scores"] for run in (tmp_path / "local", folder / "ce-seed0")
    ]
    assert scores[0] == scores[1]


def test_what_is_finished_is_not_launched_again(tmp_path, monkeypatch):
    runs = expand(load_suite(write_suite(tmp_path)))
    (tmp_path / "ce-seed0").mkdir()
    (tmp_path / "ce-seed0" / "test.json").write_text("{}")

    def engine(units, folder, resources, jobs, finished):
        for name, unit in units.items():
            assert json.loads(unit.arguments[-1])["variant"] == name.removesuffix("-seed0")
            finished(name, "lost" if name.startswith("diverges") else "")

    monkeypatch.setitem(ENGINES_OF_LSSEG, "ray", engine)
    outcomes = run_elsewhere(Engine("ray", {}, None), tmp_path, runs, ["suite.yaml"], Console())
    # Nothing wrong was said of the second, but there is no test.json either.
    assert outcomes == {"ce-seed0": "skipped", "after-seed0": "failed", "diverges-seed0": "failed"}


def test_values_of_resources():
    pairs = ["a=3", "b=0.5", "c=12:00:00", "d=0123", "e=no", "f=x=y"]
    assert _resources(pairs) == {"a": 3, "b": 0.5, "c": "12:00:00", "d": "0123", "e": "no", "f": "x=y"}
    with pytest.raises(InputError, match="must have the form KEY=VALUE"):
        _resources(["a"])


@launched_only("slurm")
@pytest.mark.parametrize(
    ("options", "message"), [(["nodes=2"], "one task on one node"), ([], "submitit could not submit")]
)
def test_what_slurm_cannot_do(tmp_path, lsseg, monkeypatch, options, message):
    """With what a run cannot use, or without SLURM's programs: one line."""
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = ["--resources", *options] if options else []
    status, _, err = lsseg("ablate", write_suite(tmp_path), "--launcher", "slurm", *chosen)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("engine", [launched_by(name) for name in ENGINES])
def test_an_unknown_resource_is_named(engine, tmp_path, lsseg):
    suite = write_suite(tmp_path)
    options = [option for option in ENGINES[engine] if option.startswith("cluster")]
    status, _, err = lsseg("ablate", suite, "--launcher", engine, "--resources", "colour=blue", *options)
    assert status == 1
    assert "colour" in err
    assert err.count("\n") == 1
