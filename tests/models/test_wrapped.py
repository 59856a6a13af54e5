"""DMLS around networks of others."""

from functools import partial

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lsseg.errors import InputError
from lsseg.models import DMLS, FCN, MultiphaseLevelSet, SegOutput
from lsseg.tasks import SegmentationTask

TINY = "tu-test_resnet.r160_in1k"


def image(count=2, size=(33, 46)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


class Listing(nn.Module):
    """A network whose output is none of those that are understood."""

    def forward(self, x):
        return [x]


def hand_written():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))


def of_smp():
    return smp.Unet("tu-test_resnet.r160_in1k", encoder_weights=None, classes=3, decoder_channels=(32, 24, 16, 16, 8))


def of_torchvision():
    return torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)


@pytest.mark.parametrize("network", [hand_written, of_smp, of_torchvision])
def test_networks_of_others_are_wrapped_as_they_are(network):
    """Each refines its own prediction, and at the start is at every step the network alone."""
    torch.manual_seed(0)
    own = network()
    x = image(2, (64, 96))
    net = DMLS(3, own, steps=2)
    with torch.no_grad():
        plain = net.network.eval()(x)
        output = net.eval()(x)
    expected = plain if isinstance(plain, torch.Tensor) else plain["out"]
    torch.testing.assert_close(output.steps[0].logits, expected)
    torch.testing.assert_close(output.steps[1].logits, expected)
    refined = MultiphaseLevelSet()(expected, x)
    torch.testing.assert_close(output.steps[0].refined, refined)
    trained = DMLS(3, own, steps=2).train()
    F.cross_entropy(trained(x).logits, torch.randint(0, 3, (2, 64, 96))).backward()
    assert trained.feedback.weight.grad.any()


def test_the_auxiliary_scores_of_torchvisions_networks_are_kept():
    class Auxiliary(nn.Conv2d):
        def forward(self, x):
            return {"out": super().forward(x), "aux": 2 * super().forward(x)}

    task = SegmentationTask(3, network=Auxiliary(3, 3, 1))
    output = task(image())
    torch.testing.assert_close(output.auxiliary[0], 2 * output.logits)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda classes: Listing(), r"network Listing must return SegOutput\(logits\), logits alone, or a mapping"),
        (lambda classes: FCN(4, 8, TINY, width=4), r"returned logits \(2, 4, 33, 46\); expected \(2, 3, 33, 46\)"),
    ],
)
def test_networks_that_return_something_else(network, message):
    with pytest.raises(InputError, match=message):
        DMLS(3, network, steps=1)(image())


class Resized(nn.Module):
    """A network that changes the size of its input before its first convolution."""

    def __init__(self, classes, change):
        super().__init__()
        self.change, self.conv = change, nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, x):
        scores = self.conv(self.change(x))
        return SegOutput(F.interpolate(scores, x.shape[-2:], mode="bilinear"))


@pytest.mark.parametrize(
    "change",
    [
        partial(F.interpolate, scale_factor=2),
        partial(F.interpolate, size=(64, 64)),
        partial(F.interpolate, scale_factor=0.5),
        lambda x: F.pad(x, (2, 2, 2, 2)),
        lambda x: F.pad(x, (16, 0, 31, 0)),
    ],
)
def test_a_network_that_resizes_its_input_is_refused(change):
    """The previous prediction would lie somewhere else than the image."""
    with pytest.raises(InputError, match="the previous prediction cannot enter its first convolution"):
        DMLS(3, partial(Resized, change=change), steps=2)(image())


class TwoEntries(nn.Module):
    """Two convolutions on three channels, the one that is used first registered last."""

    def __init__(self, classes):
        super().__init__()
        self.late = nn.Conv2d(3, classes, 3, padding=1)
        self.early = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return SegOutput(self.late(self.early(x).relu()))


def test_the_prediction_enters_where_an_image_arrives_first():
    torch.manual_seed(0)
    net = DMLS(4, TwoEntries, steps=2, level_set=False)
    nn.init.normal_(net.feedback.weight, std=0.3)  # it starts at 0; give it something to do
    assert net.feedback.weight.shape == (3, 4, 3, 3)
    first, second = (step.logits for step in net(image()).steps)
    extra = F.conv2d(first.softmax(1), net.feedback.weight, padding=1)
    early, late = net.network.early, net.network.late
    torch.testing.assert_close(second, late((early(image()) + extra).relu()))
    assert DMLS(4, TwoEntries, steps=2, first="late").feedback.weight.shape == (4, 4, 3, 3)
    assert net.network.training
    with pytest.raises(InputError, match=r"^first 'conv' is not a convolution .* has late, early"):
        DMLS(4, TwoEntries, steps=2, first="conv")


def test_a_network_may_be_given_instead_of_made():
    own = TwoEntries(4)
    assert DMLS(4, own, steps=2).network is own


def test_a_first_convolution_that_does_not_see_the_image():
    class Shuffled(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.layers = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 3, 1), nn.Conv2d(3, classes * 4, 1))

        def forward(self, x):
            return SegOutput(F.pixel_shuffle(self.layers(x), 2))

    with pytest.raises(InputError, match="the previous prediction cannot enter its first convolution"):
        DMLS(3, Shuffled, steps=2)(image(2, (32, 32)))


def test_a_network_without_a_convolution_on_the_image_is_refused():
    with pytest.raises(InputError, match="no convolution on the three channels"):
        DMLS(4, lambda classes: nn.Conv2d(1, classes, 1), steps=2)
