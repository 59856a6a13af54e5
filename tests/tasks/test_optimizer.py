from functools import partial

import pytest
from torch import nn

from lsseg.errors import InputError
from lsseg.models import DMLS, FCN, ChanVeseNet, DeepLabLargeFOV
from lsseg.tasks.base import Recipe


def built(**options):
    net = nn.ModuleDict({"network": FCN(3, encoder_name="tu-test_resnet.r160_in1k", width=8)})
    return net, Recipe(**options).build(net, 10)["optimizer"]


def test_one_rate_for_all_is_one_group():
    net, optimizer = built(lr=0.1)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_new_layers_have_a_rate_of_their_own_that_falls_alike(name):
    net = nn.ModuleDict({"network": FCN(3, encoder_name="tu-test_resnet.r160_in1k", width=8)})
    made = Recipe(name, lr=0.1, new_layers=10, poly_power=1).build(net, 10)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    old, new = optimizer.param_groups
    assert {id(p) for p in old["params"]} == {id(p) for p in net["network"].encoder.parameters()}
    assert len(old["params"]) + len(new["params"]) == len(list(net.parameters()))
    assert (old["lr"], new["lr"]) == pytest.approx((0.1, 1.0))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert (old["lr"], new["lr"]) == pytest.approx((0.05, 0.5))


@pytest.mark.parametrize(("make", "new"), [(FCN, "scores"), (DeepLabLargeFOV, "classifier")])
def test_the_fully_connected_layers_of_a_vgg_are_not_new(make, new):
    net = nn.ModuleDict({"network": make(3, encoder_name="vgg11", width=8)})
    _, group = Recipe(new_layers=10).build(net, 10)["optimizer"].param_groups
    names = {name for name, p in net.named_parameters() if any(p is other for other in group["params"])}
    assert {name.split(".")[1] for name in names} <= {new, "enlarge"}
    assert any(name.startswith(f"network.{new}") for name in names)


def test_a_negative_factor_is_refused():
    with pytest.raises(InputError, match=r"new_layers must not be negative"):
        Recipe(new_layers=-1)


def rates(steps, **options):
    made = Recipe(lr=1.0, momentum=0.0, **options).build(nn.Linear(2, 1), steps)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_falls_with_every_step_or_at_milestones_and_rises_first():
    assert rates(4, poly_power=0.5) == pytest.approx([(1 - k / 4) ** 0.5 for k in range(4)])
    assert rates(6, milestones=[1 / 3, 5 / 6]) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01])
    assert rates(6, milestones=[2 / 3], warmup=0.5) == pytest.approx([0.25, 0.5, 0.75, 1, 0.1, 0.1])
    risen = [min(1, (k + 1) / 3) * (1 - k / 5) for k in range(5)]
    assert rates(5, poly_power=1, warmup=0.4) == pytest.approx(risen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": [0.5, 0.2]}, r"lr_milestones must be increasing shares .*, not \[0\.5, 0\.2\]"),
        ({"milestones": [60000]}, r"lr_milestones must be increasing shares of the training in \(0, 1\)"),
        ({"warmup": 500}, r"lr_warmup must lie in \[0, 1\), not 500"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Recipe(**options)


@pytest.mark.parametrize("new_layers", [1.0, 10.0])
@pytest.mark.parametrize("wrapped", [partial(DMLS, steps=2), partial(ChanVeseNet, features=4)])
def test_learnt_scales_have_their_own_rate_and_no_weight_decay(wrapped, new_layers):
    inner = partial(FCN, encoder_name="tu-test_resnet.r160_in1k", width=8)
    net = nn.ModuleDict({"network": wrapped(3, network=inner)})
    optimizer = Recipe(lr=0.1, weight_decay=0.3, scale_lr=0.02, new_layers=new_layers).build(net, 10)["optimizer"]
    *others, scales = optimizer.param_groups
    (gain,) = scales["params"]
    assert gain is dict(net.named_parameters())[next(n for n, _ in net.named_parameters() if n.endswith("log_gain"))]
    assert (scales["lr"], scales["weight_decay"]) == (0.02, 0.0)
    assert [group["weight_decay"] for group in others] == [0.3] * len(others)
    assert sum(len(group["params"]) for group in others) + 1 == len(list(net.parameters()))
