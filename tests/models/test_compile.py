"""Networks compile as one graph, forward and backward, and compute the same."""

import pytest
import torch

from lsseg.models import DMLS, ChanVeseNet, SmpNet

TINY = {"encoder_name": "tu-test_resnet.r160_in1k", "decoder": {"decoder_channels": [16, 16, 8, 8, 8]}}


def plain(classes):
    return SmpNet(classes, "unet", encoder_weights=None, **TINY)


NETWORKS = {  # the plain one is part of both
    "DMLS": lambda: DMLS(5, plain, steps=2),
    "Chan-Vese": lambda: ChanVeseNet(5, plain, features=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_network_compiles_whole(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    image = torch.rand(2, 3, 40, 56)
    torch._dynamo.reset()
    whole = torch.compile(network, fullgraph=True, backend="aot_eager")
    results = []
    for call in (network, whole):
        network.zero_grad()
        logits = call(image).logits
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
