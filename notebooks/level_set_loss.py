# %% [markdown]
# # The level-set loss: Heaviside functions, ε, λ and gradients
#
# Kim 2019 adds a Chan–Vese energy of the softmax to cross-entropy. What it does depends on the smooth step function
# $H_\varepsilon$, on its width $\varepsilon$, and on its weight $\lambda$. All three can be looked at without training.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from lsseg.functional import dirac, heaviside, level_set_energy
from lsseg.losses import CrossEntropyLevelSetLoss

# %% [markdown]
# ## Three step functions
#
# $$H^{HF}(z) = [z \ge 0],\qquad
# H^{AHF}_\varepsilon(z) = \tfrac12\bigl(1 + \tfrac2\pi\arctan\tfrac z\varepsilon\bigr),\qquad
# H^{MAHF}_\varepsilon(z) = \tfrac12\bigl(1 + \tanh\tfrac z\varepsilon\bigr).$$
#
# The gradient of the loss is proportional to their derivative. HF has none, AHF's tails reach everywhere, MAHF's end.

# %%
z = torch.linspace(-1, 1, 801, dtype=torch.float64)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for kind, epsilon in (("hf", 1.0), ("ahf", 1 / 20), ("mahf", 1 / 20), ("ahf", 20.0)):
    label = kind.upper() + ("" if kind == "hf" else f", ε = {epsilon:g}")
    axes[0].plot(z, heaviside(z, epsilon, kind), label=label)
    axes[1].semilogy(z, dirac(z, epsilon, kind).clamp_min(1e-9), label=label)
axes[0].set(title="H", xlabel="z")
axes[1].set(title="its derivative", xlabel="z", ylim=(1e-6, 20))
axes[0].legend()
plt.show()
assert abs(torch.trapezoid(dirac(z, 1 / 20, "mahf"), z) - 1) < 1e-6

# %% [markdown]
# ## Where the gradient is
#
# One row of pixels that goes from class 0 to class 1, with scores that are less and less sure towards the middle. The
# truth changes at pixel 40, the scores a little later: pixels 40 to 49 are wrong.

# %%
place = torch.arange(100.0, dtype=torch.float64)
target = (place >= 40).long()[None, None]
scores = torch.stack([(50 - place) / 6, (place - 50) / 6])[None, :, None]


def gradient(loss):
    """By the score of class 1."""
    leaf = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0][0, 1, 0]


plt.figure(figsize=(10, 3.2), layout="constrained")
plt.plot(place, 100 * gradient(lambda s: F.cross_entropy(s, target)), "k", label="cross-entropy")
for epsilon in (0.02, 0.05, 0.2, 1.0):
    plt.plot(
        place, 100 * gradient(lambda s, e=epsilon: level_set_energy(s, target, e)), label=f"level set, ε = {epsilon:g}"
    )
plt.axvspan(40, 50, color="0.9")
plt.legend()
plt.xlabel("pixel (grey: wrong)")
plt.ylabel("100 × gradient")
plt.show()

# %% [markdown]
# A small $\varepsilon$ acts on undecided pixels only, however wrong the decided ones are: the loss refines contours and
# cannot teach alone. With a large one it acts everywhere, and more weakly.
#
# ## λ and the reduction
#
# The paper's $\lambda = 4\cdot10^{-4}$ multiplies a *sum* over its network's map: 41×41 pixels for a crop of 321, 65×65
# for one of 512. `reduction="mean"` with $\lambda = 4\cdot10^{-4}\cdot 41^2 \approx 0.67$ (or 1.69) is the same there,
# and does not depend on the resolution:

# %%
generator = torch.Generator().manual_seed(0)
for side in (41, 82, 164, 328):
    target = torch.zeros(1, side, side, dtype=torch.long)
    target[:, :, side // 2 :] = 1
    logits = torch.randn(1, 2, side, side, generator=generator)
    printed = 4e-4 * level_set_energy(logits, target, reduction="batchmean")
    ours = 4e-4 * 41**2 * level_set_energy(logits, target)
    print(f"{side:3}×{side:<3}  printed {printed:7.4f}   mean {ours:.4f}")
    if side == 41:
        torch.testing.assert_close(printed, ours, rtol=1e-4, atol=1e-7)

# %% [markdown]
# ## Classes that are yet to be found
#
# With precision $p$ and recall $r$, both weighted by $h = H_\varepsilon(P - \tfrac12)$, the energy per pixel of a small
# class is nearly $1 - rp$. Where both are near 0 it is flat. A class of 100 pixels in 10 000 has the probability 0.01
# everywhere else. How much do its own pixels' scores gain by a step, as it is found?

# %%
small = torch.zeros(1, 100, 100, dtype=torch.long)
small[0, :10, :10] = 1


def pull(found, loss):
    """Sum of -∂loss/∂score over the pixels of the class, which has the probability ``found`` there."""
    odds = torch.where(small == 1, found, 0.01).double().logit()
    leaf = torch.stack([torch.zeros_like(odds), odds], 1).requires_grad_()
    return float(-torch.autograd.grad(loss(leaf), leaf)[0][:, 1][small == 1].sum())


losses = {
    "cross-entropy": lambda s: F.cross_entropy(s, small),
    "mean, ε = 0.05": lambda s: level_set_energy(s, small),
    "balanced, h = P": lambda s: level_set_energy(s, small, 0.5, "ramp", reduction="balanced"),
    "log, h = P": lambda s: level_set_energy(s, small, 0.5, "ramp", reduction="log"),
}
probabilities = torch.linspace(0.011, 0.99, 60).tolist()
plt.figure(figsize=(10, 3.2), layout="constrained")
for label, loss in losses.items():
    plt.semilogy(probabilities, [max(pull(found, loss), 1e-6) for found in probabilities], label=label)
plt.legend()
plt.xlabel("probability of the class at its pixels")
plt.ylabel("pull")
plt.show()
assert pull(0.03, losses["log, h = P"]) > 20 * pull(0.03, losses["balanced, h = P"])

# %% [markdown]
# The paper's energy pulls at a class only when it is half sure of it. `reduction="log"` with `heaviside="ramp"` and
# $\varepsilon = \tfrac12$, which makes $h$ the probability itself, pulls from the start.
#
# Cross-entropy and the level set with one softmax between them, and what each contributes:

# %%
criterion = CrossEntropyLevelSetLoss(level_set_weight=0.67)
cross_entropy, energy = criterion.terms(logits, target)
print(f"cross-entropy {cross_entropy:.4f}, energy {energy:.4f}, loss {criterion(logits, target):.4f}")
