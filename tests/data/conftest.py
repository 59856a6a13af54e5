import pytest


@pytest.fixture
def masks_of():
    """The masks of objects, one by one."""
    return lambda found: [found.layers[layer] == k + 1 for k, layer in enumerate(found.layer)]
