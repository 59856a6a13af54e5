"""What Homayounfar 2020's best entry adds: WideResNet-38, deformable convolutions, PANet's path."""

import re
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch import encoders

from lsseg.errors import InputError
from lsseg.models import DFCN, FCN, DeepLabV2, LevelSetRCNN, SmpNet
from lsseg.models.encoder import make_encoder
from lsseg.models.fpn import BottomUpPath, DeformableConv2d, PyramidEncoder, deform
from lsseg.models.wide_resnet import PreActivation, WideResNet38

SMALL = {"width": 8, "mask_width": 8, "box_width": 8, "features": 4, "proposals": 8, "detections": 4}


def test_wide_resnet_38_has_38_layers_and_its_strides():
    with torch.device("meta"):
        net = WideResNet38()
        maps = net(torch.empty(1, 3, 70, 90))
    convs = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d) and "proj" not in name]
    assert len(convs) == 37  # and the classifier that is not there
    sizes = [(70, 90), (35, 45), (18, 23), (9, 12), (5, 6), (3, 3)]
    assert [tuple(m.shape[1:]) for m in maps] == [(c, *s) for c, s in zip(net.out_channels, sizes, strict=True)]
    assert {
        "mod1.conv1.weight",
        "mod4.block6.convs.conv2.weight",
        "mod7.block1.proj_conv.weight",
    } <= net.state_dict().keys()


def test_a_block_adds_its_convolutions_to_what_comes_in():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 7)
    same = PreActivation(5, (4, 5)).eval()
    active = F.relu(x / (1 + 1e-5) ** 0.5)
    inner = F.relu(F.conv2d(active, same.convs.conv1.weight, padding=1) / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(same(x), x + F.conv2d(inner, same.convs.conv2.weight, padding=1))
    other = PreActivation(5, (4, 6, 9), stride=2).eval()
    assert other(x).shape == (2, 9, 3, 4)
    assert [other.convs[i].kernel_size for i in (0, 2, 4)] == [(1, 1), (3, 3), (1, 1)]


def test_wide_resnet_takes_weights_from_a_file_only():
    with torch.device("meta"), pytest.raises(InputError, match="or use the path of a file of weights"):
        make_encoder("wide_resnet38", "imagenet")


@pytest.mark.parametrize("stride", [8, 16])
def test_wide_resnet_can_be_dilated(stride):
    with torch.device("meta"):
        encoder, _, strides = make_encoder("wide_resnet38", None, stride)
        maps = encoder(torch.empty(1, 3, 64, 96))
    assert [64 // m.shape[2] for m in maps] == strides == [1, 2, 4, *([8] * 3 if stride == 8 else [8, 16, 16])]


@pytest.mark.parametrize(
    "network",
    [partial(SmpNet, architecture="unet"), partial(SmpNet, architecture="deeplabv3plus"), DFCN, DeepLabV2, FCN],
)
def test_every_network_takes_wide_resnet(network):
    with torch.device("meta"):
        net = network(5, encoder_name="wide_resnet38")
        assert net(torch.empty(2, 3, 64, 96)).logits.shape == (2, 5, 64, 96)


def test_names_of_batch_norms_with_their_activation_inside():
    """As in-place batch-norm's release has them."""
    with torch.device("meta"):
        keys = WideResNet38().state_dict()
    theirs = {re.sub(r"(bn\d|bn_out)\.0\.", r"\1.", key): key for key in keys}
    assert "mod4.block2.convs.bn2.weight" in theirs
    assert "bn_out.running_mean" in theirs
    assert WideResNet38.own_names(theirs) == {key: key for key in keys}
    wrapped = {f"module.{key}": own for key, own in theirs.items()}
    assert WideResNet38.own_names(wrapped) == {f"module.{key}": key for key in keys}
    assert WideResNet38.own_names(dict.fromkeys(keys)) == dict.fromkeys(keys)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "tu-test_resnet.r160_in1k"])
def test_a_deformed_encoder_starts_as_the_plain_one(name):
    torch.manual_seed(0)
    encoder = encoders.get_encoder(name, weights=None).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = encoder(x)
        keys = set(encoder.state_dict())
        deform(encoder, 2, name)
        for one, other in zip(plain, encoder(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    new = set(encoder.state_dict()) - keys
    assert new
    assert all(".offset." in key for key in new)
    assert keys <= set(encoder.state_dict())


def test_offsets_learn_and_shift_what_is_seen():
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    conv = DeformableConv2d(plain).double()
    x = torch.randn(1, 2, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(conv(x), plain(x))
    conv(x).square().sum().backward()
    assert conv.offset.weight.grad.abs().sum() > 0
    assert conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        conv.offset.bias[1:18:2] = 1.0  # offsets come as y, x, y, x, …: one pixel to the right
    inner = (..., slice(1, -1), slice(1, -2))
    torch.testing.assert_close(conv(x)[inner], plain(x.roll(-1, -1))[inner])


def test_an_encoder_of_unknown_stages_is_refused():
    with pytest.raises(InputError, match="must be 0 for vgg11, because its stages are not known"):
        deform(encoders.get_encoder("vgg11", weights=None), 1, "vgg11")
    with pytest.raises(InputError, match=r"must lie in 0\.\.4"):
        deform(encoders.get_encoder("resnet18", weights=None), 5, "resnet18")


def test_the_path_runs_from_fine_to_coarse():
    torch.manual_seed(0)
    path = BottomUpPath(3, 4).double()
    maps = [torch.randn(1, 4, *size, dtype=torch.float64) for size in ((12, 20), (6, 10), (3, 5))]
    found = path(OrderedDict(zip("012", maps, strict=True)))
    assert list(found) == ["0", "1", "2", "pool"]
    torch.testing.assert_close(found["0"], maps[0])

    def step(finer, i):
        return F.relu(path.smooth[i](maps[i + 1] + F.relu(path.down[i](finer))))

    torch.testing.assert_close(found["1"], step(maps[0], 0))
    torch.testing.assert_close(found["2"], step(step(maps[0], 0), 1))
    assert found["pool"].shape == (1, 4, 2, 3)


def test_all_of_it_trains_and_detects():
    torch.manual_seed(0)
    net = LevelSetRCNN(2, "resnet18", deformable=2, bottom_up=True, score_threshold=0.0, **SMALL)
    image = torch.rand(3, 64, 80)
    layers = torch.zeros(1, 64, 80, dtype=torch.int32)
    layers[0, 8:40, 10:50] = 1
    zero = torch.zeros(1, dtype=torch.long)
    known = {
        **{"layers": layers, "layer": zero, "labels": zero, "crowd": zero.bool()},
        "boxes": torch.tensor([[10.0, 8.0, 50.0, 40.0]]),
    }
    output = net.train().train_output([image], [known])
    (sum(output.losses.values()) + output.masks.final.sum()).backward()
    unused = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    assert net.eval()([image])[0].masks.final.shape[1:] == (112, 112)


def test_wide_resnet_carries_a_pyramid():
    with torch.device("meta"):
        encoder = PyramidEncoder("wide_resnet38", None, 8, True, deformable=1, bottom_up=True)
    assert encoder.strides == [4, 8, 16, 32]
    assert sum(isinstance(m, DeformableConv2d) for m in encoder.modules()) == 1
