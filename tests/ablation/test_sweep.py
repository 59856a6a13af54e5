"""A suite as a W&B sweep, and one of its runs by itself."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from lsseg.ablation import command
from lsseg.ablation.spec import expand, load_suite
from lsseg.cli import main

TOP = Path(__file__).parents[2]
TINY = TOP / "tests" / "cli" / "tiny.yaml"


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.read_text())
    variants = [
        {"name": "coarse"},
        {"name": "fine", "start": "coarse"},
        {"name": "cited", "cite": True, "paper": {"miou": 70}},
    ]
    content = {"name": "tiny", "base": ["tiny.yaml"], "set": {"wandb.mode": "auto"}, "seeds": [0, 1]}
    content["variants"] = variants
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def exported(suite, tmp_path, *options):
    assert main(["ablate", str(suite), "--root", str(tmp_path / "runs"), "--sweep", *options]) == 0
    return yaml.safe_load((tmp_path / "runs" / "tiny" / "sweep.yaml").read_text())


def test_a_sweep_takes_the_runs_of_the_suite(suite, tmp_path, capsys):
    sweep = exported(suite, tmp_path)
    grid = [sweep["parameters"][name]["values"] for name in ("variant", "seed")]
    assert sorted(itertools.product(*grid)) == sorted((r.variant.name, r.seed) for r in expand(load_suite(suite)))
    assert sweep["method"] == "grid"
    assert "wandb sweep" in capsys.readouterr().out
    assert (tmp_path / "runs" / "tiny" / "suite.json").is_file()  # so that `lsseg report` finds what the agents did
    assert exported(suite, tmp_path, "--only", "coarse-*")["parameters"]["variant"]["values"] == ["coarse"]
    assert main(["ablate", str(suite), "--sweep", "--only", "coarse-*", "fine-seed0"]) == 1
    assert "--sweep needs every seed" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("sweeps") is None, reason="W&B's schema: pip install --no-deps sweeps")
def test_a_sweep_is_what_wandb_accepts(tmp_path):
    # Beside the package's own modules, which cannot be imported together with NumPy 2.
    schema = json.loads((Path(importlib.util.find_spec("sweeps").origin).parent / "config" / "schema.json").read_text())
    suites = [path for path in TOP.glob("experiments/**/*.yaml") if "variants" in yaml.safe_load(path.read_text())]
    assert len(suites) > 30
    for path in suites:
        # Not as the command line does it, which would read the configurations of all variants, too.
        assert command.main(["ablate", str(path), "--root", str(tmp_path), "--sweep"]) == 0, path
        content = yaml.safe_load((tmp_path / load_suite(path).name / "sweep.yaml").read_text())
        jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"method": "all of them"}, schema)


def test_registering_a_sweep_needs_a_login(suite, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert main(["ablate", str(suite), "--sweep", "--create"]) == 1
    assert "--create needs a login" in capsys.readouterr().err
    assert main(["ablate", str(suite), "--create"]) == 1
    assert "--create needs --sweep" in capsys.readouterr().err


@pytest.mark.parametrize("point", ["{", '{"variant": "cited", "seed": 0}', '{"variant": "fine"}', "[]", '{"seed": []}'])
def test_a_point_must_be_a_run_of_the_suite(suite, point, capsys):
    assert main(["run", str(suite), "--point", point]) == 1
    assert "JSON with a variant (one of coarse, fine) and a seed (one of 0, 1)" in capsys.readouterr().err


@pytest.mark.slow
def test_an_agent_does_a_run_and_what_it_starts_from(suite, tmp_path):
    exported(suite, tmp_path)
    folder = tmp_path / "runs" / "tiny"
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": "0" * 40,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    points = json.dumps([{"variant": "fine", "seed": 1}, {"variant": "coarse", "seed": 1}])
    agent = [sys.executable, str(Path(__file__).with_name("agent.py")), str(folder / "sweep.yaml"), points]
    done = subprocess.run(agent, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in folder.glob("*/test.json")} == {"coarse-seed1", "fine-seed1"}
    assert (folder / "fine-seed1" / "wandb-id").read_text() == "agent0"
    assert (folder / "coarse-seed1" / "wandb-id").read_text() != "agent0"  # done on the way, not a run of the sweep
    (record,) = (folder / "fine-seed1" / "wandb").glob("offline-run-*-agent0/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    rows = subprocess.run(inspect, capture_output=True, text=True, timeout=600, check=True).stdout.splitlines()
    (run,) = [row["run"] for row in map(json.loads, rows) if "run" in row]
    wanted = {"sweep_id": "made-up", "display_name": "fine-seed1", "run_group": "tiny", "tags": ["fine"]}
    assert {key: run[key] for key in wanted} == wanted
    assert main(["report", str(folder)]) == 0
