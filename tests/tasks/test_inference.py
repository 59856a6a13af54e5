"""Windows and views."""

import pytest
import torch
import torch.nn.functional as F

from lsseg.tasks.inference import mean_of_views, sliding_window


def network(x):
    """Two scores that see where they are in what they are shown."""
    ramp = torch.arange(x.shape[-1], dtype=x.dtype).expand(x.shape[0], 1, *x.shape[-2:])
    return torch.cat([x.sum(1, keepdim=True), x[:, :1] * ramp], 1)


@pytest.mark.parametrize("size", [(40, 70), (33, 32), (20, 50)])
def test_windows_agree_where_a_network_sees_a_pixel_only(size):
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(sliding_window(lambda x: x[:, :2] ** 2, image, 32), image[:, :2] ** 2)


def test_views_are_averaged_at_the_size_of_the_image():
    image = torch.rand(2, 3, 11, 15, dtype=torch.float64)
    small = F.interpolate(image, (6, 8), mode="bilinear", align_corners=False, antialias=True)
    views = [
        network(image),
        network(image.flip(-1)).flip(-1),
        F.interpolate(network(small), (11, 15), mode="bilinear", align_corners=False),
        F.interpolate(network(small.flip(-1)).flip(-1), (11, 15), mode="bilinear", align_corners=False),
    ]
    found = mean_of_views(network, image, True, (1.0, 0.5))
    torch.testing.assert_close(found, sum(views) / 4)
    torch.testing.assert_close(mean_of_views(network, image, False, (1.0,)), network(image))
