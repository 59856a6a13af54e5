"""Shared by all tests: nothing is written outside a test's own folder, and no network is asked for."""

import os

import pytest

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", WANDB_SILENT="true")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Work in the test's folder; keep W&B out of the home folder; forget what a command left in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    for name in ("LSSEG_RUN_FOLDER", "LSSEG_DATA", "PL_GLOBAL_SEED", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
