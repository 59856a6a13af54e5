import pytest
import torch

from lsseg.models import SmpNet

TINY = "tu-test_resnet.r160_in1k"


@pytest.mark.parametrize(
    "architecture",
    ["unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "upernet", "segformer"],
)
@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
def test_every_architecture_takes_any_size(architecture, size):
    net = SmpNet(5, architecture, TINY if architecture not in ("linknet", "unetplusplus") else "resnet18").eval()
    with torch.no_grad():
        output = net(torch.rand(2, 3, *size))
    assert output.logits.shape == (2, 5, *size)
    assert output.steps == ()


def test_architectures_that_want_large_images():
    net = SmpNet(3, "pan", "resnet18").eval()
    assert net(torch.rand(1, 3, 250, 260)).logits.shape == (1, 3, 250, 260)


def test_normalisation_is_inside_and_in_the_checkpoint():
    net = SmpNet(3, "unet", TINY).eval()
    assert {"mean", "std"} <= net.state_dict().keys()
    seen = []
    net.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = net.mean.expand(1, 3, 64, 64)
    net(image)
    assert seen[0].abs().max() < 1e-6


def test_padding_repeats_the_edge_and_is_cut_off():
    net = SmpNet(3, "unet", TINY).eval()
    seen = []
    net.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(torch.rand(1, 3, 33, 64))
    (padded,) = seen
    assert padded.shape[-2:] == (64, 64)
    assert torch.equal(padded[..., 33:, :], padded[..., 32:33, :].expand(-1, -1, 31, -1))


def test_random_weights_follow_the_seed():
    def make():
        torch.manual_seed(3)
        return SmpNet(3, "unet", TINY).state_dict()

    one, two = make(), make()
    assert all(torch.equal(one[key], two[key]) for key in one)
