"""Windows and views."""

import pytest
import torch
import torch.nn.functional as F

from lsseg.models import SmpNet
from lsseg.tasks import SegmentationTask
from lsseg.tasks.inference import _ramp, _starts, bands, mean_of_views, sliding_window


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


@pytest.mark.parametrize("size", [(100, 71), (33, 90), (64, 32), (20, 50)])
def test_bands_are_the_average_of_all_windows(size):
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    total, weight = torch.zeros(2, 2, *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for top in _starts(size[0], 32):
        for left in _starts(size[1], 32):
            scores = network(image[..., top : top + 32, left : left + 32])
            ramp = _ramp(scores.shape[-2], image)[:, None] * _ramp(scores.shape[-1], image)
            total[..., top : top + 32, left : left + 32] += scores * ramp
            weight[top : top + 32, left : left + 32] += ramp
    found = list(bands(network, image, 32))
    assert [rows.start for rows, _ in found[1:]] == [rows.stop for rows, _ in found[:-1]]
    assert max(scores.shape[2] for _, scores in found) <= 32
    torch.testing.assert_close(torch.cat([scores for _, scores in found], 2), total / weight)


@pytest.mark.parametrize("wanted", [None, (), (2, 0)])
def test_a_large_image_is_predicted_by_bands_as_whole(wanted):
    def small(classes):
        return SmpNet(classes, "unet", "tu-test_resnet.r160_in1k", decoder={"decoder_channels": [32, 24, 16, 16, 8]})

    task = SegmentationTask(4, network=small, window=64).eval()
    task.predicted_phi = wanted
    image = torch.randint(0, 256, (1, 3, 150, 110), dtype=torch.uint8)
    with torch.inference_mode():
        found = task.predict_step({"image": image, "size": [[150], [110]], "path": ["a"]}, 0)
        logits = task.infer(image / 255)
    assert torch.equal(found["prediction"].long(), logits.argmax(1))
    expected = task.phi(logits)
    torch.testing.assert_close(found["phi"], expected if wanted is None else expected[:, list(wanted)])
