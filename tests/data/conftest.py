import os
from pathlib import Path

import pytest

REAL = Path(os.environ.get("LSSEG_DATA", "data")).absolute()  # before a test hides it


@pytest.fixture
def real():
    """Finds a folder of real files; a test is skipped where it is not there."""

    def find(*parts):
        folder = REAL.joinpath(*parts)
        if not folder.is_dir():
            pytest.skip(f"needs the real files of {folder} (LSSEG_DATA)")
        return folder

    return find


@pytest.fixture
def masks_of():
    """The masks of objects, one by one."""
    return lambda found: [found.layers[layer] == k + 1 for k, layer in enumerate(found.layer)]
