from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsseg.errors import InputError
from lsseg.models import FCN, DeepLabLargeFOV, DeepLabV2, SegOutput
from lsseg.models.deeplab import at_scales
from lsseg.models.encoder import make_encoder
from lsseg.tasks import LevelSetLossTask, SegmentationTask

TINY = "tu-test_resnet.r160_in1k"


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("make", [partial(DeepLabLargeFOV, width=16), DeepLabV2])
@pytest.mark.parametrize("encoder", [TINY, "vgg11"])
def test_any_size(make, encoder):
    net = make(5, encoder).eval()
    for size in ((64, 64), (33, 70), (1, 5)):
        with torch.no_grad():
            output = net(torch.rand(1, 3, *size))
        assert output.logits.shape == (1, 5, *size)
        assert output.feature_stride == 8
        assert output.features.shape[2:] == (-(-size[0] // 8), -(-size[1] // 8))


@pytest.mark.parametrize(
    ("make", "published"), [(DeepLabLargeFOV, 20.5e6), (partial(DeepLabV2, dilations=(12,)), 43e6), (DeepLabV2, 44.0e6)]
)
def test_published_numbers_of_parameters(make, published):
    """Chen 2015, table 2: 20.5 M for LargeFOV; a ResNet-101 has 42.5 M without its classifier."""
    with torch.device("meta"):
        net = make(21)
    assert count(net) == pytest.approx(published, rel=0.01)


def test_atrous_pyramid_has_four_classifiers_of_2048_channels():
    with torch.device("meta"):
        net = DeepLabV2(21)
        encoder, _, strides = make_encoder("resnet101", None, 8)
    assert count(net) - count(encoder) == 4 * (2048 * 9 * 21 + 21)
    assert strides == [1, 2, 4, 8, 8, 8]
    dilations = {
        m.dilation[0] for m in encoder.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    }
    assert dilations == {4}


def test_large_fov_pools_as_the_original():
    net, used = DeepLabLargeFOV(3, "vgg16", width=8).eval(), []
    for pool in (m for m in net.modules() if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d))):
        pool.register_forward_hook(lambda m, *_: used.append((type(m).__name__[:3], m.kernel_size, m.stride)))
    with torch.no_grad():
        net(torch.rand(1, 3, 40, 40))
    assert used == [("Max", 3, 2)] * 3 + [("Max", 3, 1)] * 2 + [("Avg", 3, 1)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_fully_connected_layers_are_taken_over_from_a_file(tmp_path, wrapped):
    encoder, _, _ = make_encoder("vgg11", None)
    state = dict(encoder.state_dict())
    units = torch.arange(32.0)
    state["classifier.0.weight"] = torch.rand(32, 512 * 49)
    state["classifier.3.weight"] = torch.rand(32, 32)
    state["classifier.0.bias"], state["classifier.3.bias"] = units, 100 + units
    path = tmp_path / "vgg.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state, path)
    net = DeepLabLargeFOV(3, "vgg11", str(path), width=8)
    first, second = (m for m in net.head if isinstance(m, nn.Conv2d))
    assert first.bias.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert second.bias.tolist() == [100, 104, 108, 112, 116, 120, 124, 128]
    dense = state["classifier.0.weight"].view(32, 512, 7, 7)
    assert torch.equal(first.weight[1, :, 2, 0], dense[4, :, 6, 0])
    assert second.weight[2, 3] == state["classifier.3.weight"][8, 12]
    whole = FCN(3, 32, "vgg11", str(path), width=32)
    assert torch.equal(whole.hidden[0].weight, dense)
    assert torch.equal(whole.hidden[3].weight[..., 0, 0], state["classifier.3.weight"])
    assert torch.equal(net.encoder.features[0].weight, state["features.0.weight"])


def test_fully_connected_layers_of_published_weights(monkeypatch):
    """smp's copy of a VGG's weights lacks them: they come from torchvision's file, here made up."""
    encoder, _, _ = make_encoder("vgg11", None)
    asked = []
    published = {"classifier.0.bias": torch.arange(4096.0), "classifier.3.bias": torch.ones(4096), "features.0.bias": 1}
    published["classifier.0.weight"] = torch.zeros(1).expand(4096, 512 * 49)
    published["classifier.3.weight"] = torch.ones(1).expand(4096, 4096)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: asked.append(url) or published)
    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_encoder", lambda *_, **__: encoder)
    seen = {"input_space": "RGB", "input_range": [0, 1], "mean": [0.5] * 3, "std": [0.2] * 3}
    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_preprocessing_params", lambda *_: seen)
    net = FCN(3, 32, "vgg11", "imagenet", width=16)
    assert net.hidden[0].bias.tolist() == list(range(0, 4096, 256))
    assert torch.equal(net.hidden[3].weight, torch.ones(16, 16, 1, 1))
    (url,) = asked
    assert url.startswith("https://download.pytorch.org/models/vgg11-")
    with pytest.raises(InputError, match="width must be at most 4096, the number of units of vgg11"):
        FCN(3, 32, "vgg11", "imagenet", width=5000)


def test_a_file_without_fully_connected_layers_will_do(tmp_path):
    encoder, _, _ = make_encoder("vgg11", None)
    torch.save(encoder.state_dict(), tmp_path / "vgg.pth")
    net = DeepLabLargeFOV(3, "vgg11", str(tmp_path / "vgg.pth"), width=8)
    assert torch.equal(net.encoder.features[0].weight, encoder.features[0].weight)


def test_wrong_values_are_named():
    for make, match in (
        (partial(DeepLabLargeFOV, width=0), "width must be at least 1, not 0"),
        (partial(DeepLabLargeFOV, dilation=0), "dilation must be at least 1"),
        (partial(DeepLabV2, dilations=()), "dilations must be whole numbers"),
        (partial(DeepLabV2, encoder_name="densenet121"), "densenet121"),
        (partial(DeepLabV2, encoder_name=TINY, scales=(0,)), "scales must be numbers"),
    ):
        with pytest.raises(InputError, match=match):
            make(3)


def test_several_scales_take_the_largest_of_all():
    image = torch.rand(2, 3, 20, 33)
    output = at_scales(lambda part: SegOutput(part.mean(1, keepdim=True)), image, (0.5, 1.0))
    small = F.interpolate(image, (10, 16), mode="bilinear", align_corners=False).mean(1, keepdim=True)
    expected = F.interpolate(small, (20, 33), mode="bilinear", align_corners=False).maximum(image.mean(1, keepdim=True))
    torch.testing.assert_close(output.logits, expected)
    assert len(output.auxiliary) == 2


@pytest.mark.parametrize("make", [DeepLabLargeFOV, DeepLabV2])
def test_scales_are_a_key(make):
    image = torch.rand(1, 3, 45, 60)
    net = make(3, TINY, scales=(0.5, 0.75, 1.0)).eval()
    with torch.no_grad():
        several = net(image)
        net.scales = (1.0,)
        one = net(image)
    assert len(several.auxiliary) == 3
    assert torch.equal(several.auxiliary[-1], one.logits)
    assert bool((several.logits >= one.logits).all())


@pytest.mark.parametrize("make", [SegmentationTask, LevelSetLossTask])
def test_every_scale_is_supervised(make):
    task = make(3, network=partial(DeepLabV2, encoder_name=TINY, scales=(0.5, 0.75, 1.0)))
    target = torch.randint(0, 3, (2, 40, 56))
    output = task(torch.rand(2, 3, 40, 56))
    whole = task.losses(output, target)["loss"]
    parts = [task.losses(SegOutput(x), target)["loss"] for x in (output.logits, *output.auxiliary)]
    assert len(parts) == 4
    torch.testing.assert_close(whole, sum(parts))
