"""W&B: what an offline run holds, and that nobody is ever asked anything."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from lsseg.callbacks.loggers import _mode
from lsseg.files import read_jsonl
from lsseg.parser import ConfigDumper

TINY = Path(__file__).with_name("tiny.yaml")
_spec = importlib.util.spec_from_file_location("wandb_server", TINY.with_name("wandb_server.py"))
wandb_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(wandb_server)


def test_mode_is_offline_unless_the_user_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert _mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine example.org login me password secret\n")
    assert _mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert _mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.example.net:8080")
    assert _mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine own.example.net\n  login user\n  password secret\n")
    assert _mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert _mode("auto") == "disabled"
    assert _mode("offline") == "offline"


@pytest.mark.slow
def test_an_offline_run_holds_config_scores_table_and_panels(tmp_path):
    folder = tmp_path / "run"
    options = ("--wandb.mode=offline", "--wandb.group=mine", "--wandb.tags=[a, b]", "--test_after_fit=true")
    command = [
        sys.executable,
        "-m",
        "lsseg",
        "fit",
        "--config",
        TINY,
        "--trainer.default_root_dir",
        folder,
        *options,
        "--panels.images=1",
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert f"its W&B log is in {offline}; `wandb sync {offline}` sends it" in done.stdout
    (record,) = offline.glob("*.wandb")
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert read.returncode == 0, read.stderr
    json.loads(read.stdout.splitlines()[0])
    for expected in ("train/loss", "val/miou", "test/iou/ring", "test/table", "panels/val", "mine", "SyntheticShapes"):
        assert expected in read.stdout, expected
    assert list(offline.glob("files/media/images/panels/*.png"))
    assert list(offline.glob("files/media/table/test/*.json"))
    # What `wandb sync` makes of it.
    with wandb_server.WandbServer() as server:
        login = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": 40 * "a", "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "wandb", "sync", str(offline)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **login}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    made = server.runs[0]
    assert (made["displayName"], made["groupName"], made["tags"]) == ("run", "mine", ["a", "b"])
    assert any("SyntheticShapes" in run["config"] for run in server.runs)
    logged = {row["trainer/global_step"]: row["train/loss"] for row in server.history if "train/loss" in row}
    rows = read_jsonl(folder / "metrics.jsonl")
    assert logged == {row["step"]: pytest.approx(row["train/loss"]) for row in rows if "train/loss" in row}
    (table,) = (json.loads(content) for name, content in server.uploaded.items() if "media/table/test" in name)
    scores = json.loads((folder / "test.json").read_text())["scores"]
    assert dict(table["data"]) == {name: pytest.approx(score) for name, score in scores.items()}
    assert sum("media/images/panels" in name for name in server.uploaded) == 3


def test_a_sweep_is_registered(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.read_text())
    suite = {"name": "mine", "base": ["tiny.yaml"], "variants": [{"name": "ce"}], "seeds": [0, 1]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    command = [sys.executable, "-m", "lsseg", "ablate", "suite.yaml", "--sweep", "--create"]
    with wandb_server.WandbServer() as server:
        login = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": 40 * "a", "HOME": str(tmp_path), "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **login}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wandb agent --project lsseg sweep0" in done.stdout
    (sent,) = server.sweeps
    assert yaml.safe_load(sent["config"]) == yaml.safe_load((tmp_path / "runs" / "mine" / "sweep.yaml").read_text())


@pytest.mark.parametrize("text", ["2e372009", "12345678", "1e5", "nan", "true", "a: b", "plain"])
def test_what_looks_like_a_number_is_saved_as_the_text_that_it_is(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.dump({"id": text}, Dumper=ConfigDumper))
    parser = ArgumentParser()
    parser.add_argument("--id", type=str | None)
    assert parser.parse_path(path).id == text
