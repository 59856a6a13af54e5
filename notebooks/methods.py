# %% [markdown]
# # Three differentiable level sets on one image
#
# A level set stores a contour as the zero line of a function $\phi$, positive inside. The three methods differ in where
# that function comes from and what moves it:
#
# 1. **Level-set loss** (Kim 2019): $\phi$ is the network's softmax; an energy on the ground truth trains it.
# 2. **DMLS** (Zhang 2019): the level sets of all classes compete for pixels inside a recurrent network.
# 3. **Chan–Vese head** (Homayounfar 2020): $\phi$ moves to where learnt features change.
#
# Here each acts on the same generated scene by itself, without a network, so that one can see what it does.

# %%
import matplotlib.pyplot as plt
import torch

from lsseg.data import SyntheticShapes
from lsseg.functional import (
    chan_vese_evolve,
    gaussian_log_posterior,
    level_set_energy,
    multiphase_evolve,
    partition_level_sets,
    regions,
    signed_distance,
)

torch.manual_seed(0)
data = SyntheticShapes(test_images=4, size=(96, 128), difficulty=0.3)
sample = data.samples(data.source("test"), training=False)[1]
image, truth = sample["image"], sample["mask"]
classes = len(data.class_names)


def show(pictures, title=""):
    """A row of pictures with the contour of some of them."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(3.4 * len(pictures), 3), layout="constrained")
    for axis, (name, (picture, phi)) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, interpolation="nearest", cmap="viridis")
        if phi is not None and phi.min() < 0 < phi.max():
            axis.contour(phi, levels=[0], colors="yellow", linewidths=1.5)
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.suptitle(title)
    plt.show()


show({"image": (image.permute(1, 2, 0), None), "truth": (truth.where(truth != 255, -1), None)})

# %% [markdown]
# ## 1. The level-set loss
#
# For every class $l$ in the truth, whose region is $G_l$, the level set is $\phi_l = P_l - \tfrac12$, $P$ the softmax:
#
# $$E = \sum_l \sum_x H_\varepsilon(\phi_l)\,(G_l - c_1)^2 + (1 - H_\varepsilon(\phi_l))\,(G_l - c_2)^2,$$
#
# where $c_1$, $c_2$ are the means of $G_l$ inside and outside the contour. Its gradient lives where $\phi$ is near
# zero: on undecided pixels. Below it moves blurred scores onto the truth, without cross-entropy.

# %%
one_hot = regions(truth[None], classes)[0].float()
blurred = torch.nn.functional.avg_pool2d(one_hot[None], 9, 1, 4, count_include_pad=False)
logits = (8 * blurred).requires_grad_()
optimizer = torch.optim.Adam([logits], lr=0.05)
energies = []
for _ in range(80):
    optimizer.zero_grad()
    energy = level_set_energy(logits, truth[None])
    energy.backward()
    optimizer.step()
    energies.append(energy.item())

valid = truth != 255
before, after = ((s.argmax(1)[0] == truth)[valid].float().mean() for s in (8 * blurred, logits))
print(f"right pixels: {100 * before:.1f} % → {100 * after:.1f} %, energy {energies[0]:.4f} → {energies[-1]:.4f}")
gradient = torch.autograd.grad(level_set_energy(s := (8 * blurred).requires_grad_(), truth[None]), s)[0]
show(
    {
        "blurred scores": (blurred.argmax(1)[0], None),
        "size of the gradient": (gradient.abs().sum(1)[0], None),
        "after 80 updates": (logits.detach().argmax(1)[0], None),
    }
)
assert after > before

# %% [markdown]
# ## 2. The multiphase level set
#
# Every class has a level set; at each pixel the two best likelihoods $f$ compete,
#
# $$\frac{\partial \phi_l}{\partial t} = F_l\,|\nabla\phi_l| + \varepsilon\,\kappa\,|\nabla\phi_l|,$$
#
# where $F_l$ pushes the contour of the class outwards where its likelihood beats its strongest rival's, and the
# curvature $\kappa$ smooths. Here $f$ is how well a pixel's colour fits each region, a Gaussian by region, from a start
# that is far too coarse: the blurred truth on a grid of 8 pixels.

# %%
coarse = torch.nn.functional.avg_pool2d(one_hot[None], 8)
start = torch.nn.functional.interpolate(coarse, truth.shape, mode="nearest")
region = regions(start.argmax(1), classes)
phi = partition_level_sets(start, region)
likelihood = gaussian_log_posterior(image[None], start, region)
history = [phi]
for _ in range(40):
    history.append(multiphase_evolve(history[-1], likelihood, epsilon=0.3))
shares = [(step.argmax(1)[0] == truth)[valid].float().mean().item() for step in history]
print(f"right pixels: {100 * shares[0]:.1f} % → {100 * shares[-1]:.1f} %")
show({f"{k} steps": (history[k].argmax(1)[0], None) for k in (0, 5, 15, 40)})
assert shares[-1] > shares[0]

# %% [markdown]
# ## 3. The Chan–Vese evolution
#
# One object at a time, in $N$ steps on features $F$ (here: the colours):
#
# $$\phi \leftarrow \phi + \Delta t\,\delta_\varepsilon(\phi)\,\bigl[\mu\,\kappa - \lambda_1\|F - c_1\|^2 +
# \lambda_2\|F - c_2\|^2\bigr].$$
#
# In LevelSet R-CNN a network supplies $\phi^0$, $F$ and all the constants, and the whole evolution is differentiated.
# Here $\phi^0$ is the signed distance of a box around an object.

# %%
sizes = [(int((truth == k).sum()), k) for k in range(1, classes)]
chosen = max(sizes)[1]
rows, columns = torch.nonzero(truth == chosen, as_tuple=True)
box = torch.zeros_like(truth, dtype=torch.bool)
box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
reach = 14.0
phi0 = signed_distance(box[None], reach) / reach
ones, steps = torch.ones(1), 60
phis = [phi0]
for _ in range(steps):
    numbers = (4 * ones, 4 * ones, 0.1 * ones, 0.5 * torch.ones(1, 1), 0.5 * torch.ones(1, 1))
    phis.append(chan_vese_evolve(phis[-1], image[None], *numbers).clamp(-1, 1))
pixels = image.permute(1, 2, 0)
shown = {f"{data.class_names[chosen]}, {k} steps": (pixels, phis[k][0]) for k in (0, 10, 30, 60)}
show(shown)

# %% [markdown]
# The region-based force needs no edge: it moves the contour until inside and outside are each as uniform as they can
# be. On raw colours that is a crude criterion, which is why the papers learn $F$, or the scores, with a network.
