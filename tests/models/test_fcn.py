from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from lsseg.errors import InputError
from lsseg.models import DFCN, FCN
from lsseg.models.encoder import make_encoder
from lsseg.models.fcn import bilinear_doubling

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = "tu-test_resnet.r160_in1k"


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 5)])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_fcn_takes_any_size(stride, size):
    net = FCN(5, stride, TINY, width=16).eval()
    assert net(torch.rand(2, 3, *size)).logits.shape == (2, 5, *size)
    assert len(net.scores) == {32: 1, 16: 2, 8: 3}[stride]


def test_fcn_8s_on_vgg_16_has_the_published_number_of_parameters():
    with torch.device("meta"):
        convolutions = FCN(21, 8, "vgg16")
    assert count(convolutions) == pytest.approx(134.5e6, rel=0.002)  # Zhang 2019, table VIII


def test_skips_of_a_vgg_come_from_its_poolings():
    """Of 256 and 512 channels at strides 8 and 16 (pool3 and pool4), as in the paper; smp's maps are those before."""
    net = FCN(3, 8, "vgg16", width=8).eval()
    assert [score.in_channels for score in net.scores] == [8, 512, 256]
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        net.scores[2].weight.normal_()
        found = net(image).features
        x = net.prepare(image)
        pools = 0
        for module in net.encoder.features:
            x = module(x)
            pools += isinstance(module, nn.MaxPool2d)
            if pools == 3:
                break
    assert torch.equal(found, x)


@pytest.mark.parametrize(("encoder", "trunk"), [("resnet50", 23.5e6), ("resnet101", 42.5e6)])
def test_fcn_8s_on_a_resnet_adds_only_scores(encoder, trunk):
    """As the tables of Zhang 2019 have it: VGG's two large layers would be ten times the network."""
    path = EXPERIMENTS / "zhang2019" / "networks" / f"fcn8s_{encoder}.yaml"
    options = yaml.safe_load(path.read_text())["model"]["init_args"]["network"]["init_args"]["network"]["init_args"]
    with torch.device("meta"):
        net = FCN(19, **{**options, "encoder_weights": None})
    assert count(net) == pytest.approx(trunk, rel=0.01)


def test_skip_scores_start_at_zero():
    torch.manual_seed(0)
    coarse = FCN(3, 32, TINY, width=8).eval()
    torch.manual_seed(0)
    fine = FCN(3, 8, TINY, width=8).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = F.interpolate(coarse(x).logits, scale_factor=1 / 32, mode="area")
        found = F.interpolate(fine(x).logits, scale_factor=1 / 32, mode="area")
    torch.testing.assert_close(found, expected, rtol=0.3, atol=0.05)


def test_doubling_starts_as_bilinear_interpolation():
    x = torch.rand(1, 3, 6, 7)
    found = bilinear_doubling(3)(x)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


@pytest.mark.parametrize("encoder", [TINY, "resnet18", "vgg11", "vgg11_bn", "mit_b0"])
def test_dfcn_takes_any_size(encoder):
    net = DFCN(4, encoder, width=8).eval()
    output = net(torch.rand(1, 3, 45, 70))
    assert output.logits.shape == (1, 4, 45, 70)
    assert output.features.shape == (1, 8, 12, 18)


def test_dilated_encoders_keep_their_resolution():
    for name, stride in (("resnet18", 16), ("vgg11", 8)):
        encoder, channels, strides = make_encoder(name, None, stride)
        maps = encoder.eval()(torch.rand(1, 3, 64, 96))
        assert [tuple(m.shape[1:]) for m in maps] == [
            (c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
        ]
        assert strides[-1] == stride


def test_dilated_vgg_sees_what_the_plain_one_sees():
    """With a constant image, or read at every second place, dilating by 2 replaces the pooling exactly."""
    torch.manual_seed(0)
    plain, _, _ = make_encoder("vgg11", None)
    dilated, _, _ = make_encoder("vgg11", None, 8)
    dilated.load_state_dict(plain.state_dict())
    pools = [module for module in plain.features if isinstance(module, nn.MaxPool2d)]
    pools[3].kernel_size = 1  # subsample instead of taking the maximum, which dilation does not replace
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        coarse, fine = plain.eval()(x)[4], dilated.eval()(x)[4]
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)


def test_an_encoder_that_cannot_be_dilated_is_named():
    with pytest.raises(InputError, match="densenet121"):
        DFCN(3, "densenet121")
    with pytest.raises(InputError, match="encoder_name"):
        FCN(3, encoder_name="nothing")
    with pytest.raises(InputError, match="width"):
        FCN(3, encoder_name=TINY, width=-1)
