"""Shared by the tests of the command line."""

import contextlib
import resource
import shutil
from pathlib import Path

import pytest

from lsseg.cli import main

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """A finished tiny run, which no test may change."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run = ["--trainer.default_root_dir", str(folder), "--test_after_fit", "true", "--panels.images=1"]
    assert main(["fit", "--config", str(TINY), *run]) == 0
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of a finished tiny run."""
    shutil.copytree(trained_once, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def small_disk():
    """A context in which no file may grow beyond a number of bytes, as on a disk that is nearly full."""

    @contextlib.contextmanager
    def limited(most):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
