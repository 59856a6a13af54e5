"""What our operators do not differentiate is refused, instead of being 0 in silence."""

import pytest
import torch

from lsseg.functional import chan_vese_evolve, level_set_energy, multiphase_evolve

SCORES = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
FUNCTIONS = {
    "level_set": lambda x: level_set_energy(x, SCORES.argmax(1)),
    "soft level_set": lambda x: level_set_energy(x, SCORES.softmax(1)),
    "chan_vese": lambda x: chan_vese_evolve(x[:, 0], x, steps=2),
    "multiphase": lambda x: multiphase_evolve(x, SCORES.log_softmax(1)),
}


@pytest.mark.filterwarnings("ignore")  # of torch's own making
@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode_is_refused(name):
    with pytest.raises(RuntimeError, match="no forward-mode derivative: use reverse mode"):
        torch.func.jvp(FUNCTIONS[name], (SCORES,), (SCORES,))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_second_derivative_is_refused(name):
    x = SCORES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(FUNCTIONS[name](x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()
