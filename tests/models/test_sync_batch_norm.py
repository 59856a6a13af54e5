"""``trainer.sync_batchnorm``: what Lightning makes of the networks; in training it needs GPUs."""

from functools import partial

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lsseg.models import DFCN, DMLS, ChanVeseNet, SmpNet

TINY = partial(SmpNet, encoder_name="tu-test_resnet.r160_in1k")
NETWORKS = {
    "plain": TINY,
    "DMLS, statistics of each step": partial(DMLS, network=TINY, steps=2, batch_norm="per_step"),
    "DMLS, shared": partial(
        DMLS, network=partial(DFCN, encoder_name="tu-test_resnet.r160_in1k", width=8), steps=2, batch_norm="shared"
    ),
    "Chan-Vese head": partial(ChanVeseNet, network=TINY, features=4),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_batch_norm_can_be_synchronised(make):
    torch.manual_seed(0)
    net = make(3).train()
    image = torch.rand(2, 3, 64, 64)
    net(image)  # statistics that are not those of the start
    net.eval()
    with torch.no_grad():
        expected = net(image).logits
        keys = list(net.state_dict())
        norms = sum(isinstance(module, _BatchNorm) for module in net.modules())
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
        assert torch.equal(net(image).logits, expected)
    assert list(net.state_dict()) == keys
    synchronised = sum(isinstance(module, torch.nn.SyncBatchNorm) for module in net.modules())
    assert synchronised == norms > 0
