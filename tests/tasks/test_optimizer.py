import pytest
from torch import nn

from lsseg.errors import InputError
from lsseg.models import FCN
from lsseg.tasks.optimizer import Recipe


def built(**options):
    net = nn.ModuleDict({"network": FCN(3, encoder_name="tu-test_resnet.r160_in1k", width=8)})
    return net, Recipe(**options).build(net.named_parameters(), 10)["optimizer"]


def test_one_rate_for_all_is_one_group():
    net, optimizer = built(lr=0.1)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_new_layers_have_a_rate_of_their_own_that_falls_alike(name):
    net = nn.ModuleDict({"network": FCN(3, encoder_name="tu-test_resnet.r160_in1k", width=8)})
    made = Recipe(name, lr=0.1, new_layers=10, poly_power=1).build(net.named_parameters(), 10)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    old, new = optimizer.param_groups
    assert {id(p) for p in old["params"]} == {id(p) for p in net["network"].encoder.parameters()}
    assert len(old["params"]) + len(new["params"]) == len(list(net.parameters()))
    assert (old["lr"], new["lr"]) == pytest.approx((0.1, 1.0))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert (old["lr"], new["lr"]) == pytest.approx((0.05, 0.5))


def test_a_negative_factor_is_refused():
    with pytest.raises(InputError, match=r"model\.new_layers must not be negative"):
        Recipe(new_layers=-1)
