# %% [markdown]
# # The three methods in a training loop of your own
#
# Nothing of this package's runner is needed: the level-set loss is a module on tensors, the Chan-Vese refiner a
# module on masks and features, the multiphase layer a module on scores. Here each is put behind networks of others.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lsseg import ChanVeseRefiner
from lsseg.data import ObjectClasses, PennFudan, SyntheticShapes
from lsseg.functional import chan_vese_energy, chan_vese_segment
from lsseg.losses import CrossEntropyLevelSetLoss, LevelSetLoss
from lsseg.models import DMLS, MultiphaseLevelSet

torch.manual_seed(0)

# %% [markdown]
# Images of people in a street, where they are there (`lsseg data pennfudan`); else generated scenes, in which
# everything that is no background counts as an object.

# %%
real = Path(os.environ.get("LSSEG_DATA", "data"), "pennfudan").is_dir()
data = ObjectClasses(PennFudan()) if real else SyntheticShapes(train_images=12, size=(96, 128), void_width=0)
source = data.source("train")


def read(index, size=(96, 128)):
    """An image (3×H×W in [0, 1]) and its mask (H×W, 0 and 1)."""
    pixels, labels = source.read(index)
    image = torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255
    mask = (torch.from_numpy(labels.copy()).long() > 0)[None, None].float()
    return F.interpolate(image, size, mode="area")[0], F.interpolate(mask, size)[0, 0].long()


images, masks = (torch.stack(part) for part in zip(*(read(index) for index in range(8)), strict=True))
print("real images" if real else "generated images", tuple(images.shape))

# %% [markdown]
# ## The level-set loss in a plain loop
#
# Logits B×C×H×W and labels B×H×W; 255 (or another `ignore_index`) is void. The loss includes cross-entropy, of
# which it shares the softmax.

# %%
network = smp.Unet("tu-test_resnet.r160_in1k", encoder_weights=None, classes=2, decoder_channels=(64, 48, 32, 24, 16))
for module in network.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.momentum = 0.5  # so few updates: the running statistics must follow at once
criterion = CrossEntropyLevelSetLoss(level_set_weight=0.67)
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
for step in range(40):
    optimizer.zero_grad()
    loss = criterion(network(images), masks)
    loss.backward()
    optimizer.step()
    if step % 13 == 0:
        cross_entropy, energy = criterion.terms(network(images), masks)
        print(f"step {step:2}: cross-entropy {cross_entropy.item():.3f}, energy {energy.item():.3f}")

# %% [markdown]
# ## Binary, three dimensions, soft and overlapping labels
#
# One logit with a sigmoid is `mode="binary"`. Axes are free: the energy does not look at the order of pixels.

# %%
volume = torch.randn(2, 1, 8, 24, 32, requires_grad=True)
inside = torch.rand(2, 8, 24, 32) > 0.6
LevelSetLoss(mode="binary")(volume, inside).backward()
print("binary, 3-D: gradient", tuple(volume.grad.shape))

# %% [markdown]
# A floating target is soft: the share of every class in every pixel, such as the mean of several annotators.
# `valid` says which pixels count. Regions that overlap are `mode="multilabel"`; `reduction="none"` gives the energy
# of every class.

# %%
logits = torch.randn(2, 3, 24, 32, requires_grad=True)
annotators = torch.softmax(3 * torch.randn(2, 3, 24, 32), 1)
valid = torch.rand(2, 24, 32) > 0.1
CrossEntropyLevelSetLoss()(logits, annotators, valid).backward()
print("soft: largest gradient at void pixels", logits.grad.movedim(1, -1)[~valid].abs().max().item())
print("multilabel, by class:", LevelSetLoss(mode="multilabel", reduction="none")(logits, annotators > 0.3).tolist())

# %% [markdown]
# ## A Chan-Vese refiner behind a frozen network
#
# The network's probabilities and any features of the same image are enough; here the features are the image itself,
# from which the refiner's small head makes its own. The network is not touched.

# %%
network.eval().requires_grad_(False)
refiner = ChanVeseRefiner(channels=3, features=16)
optimizer = torch.optim.Adam(refiner.parameters(), lr=5e-3)
with torch.no_grad():
    probabilities = network(images).softmax(1)[:, 1]
for step in range(40):
    optimizer.zero_grad()
    refined = refiner(probabilities, images)
    loss = refiner.loss(refined, masks)
    loss.backward()
    optimizer.step()
    if step % 13 == 0:
        print(f"step {step:2}: loss {loss.item():.3f}")


def iou(one, other):
    """Of two masks, mean over images."""
    both, either = (one & other).flatten(1).sum(1), (one | other).flatten(1).sum(1)
    return (both / either.clamp_min(1)).mean().item()


truth = masks > 0
print(f"IoU on the images trained on: {iou(probabilities > 0.5, truth):.3f} → {iou(refined.mask, truth):.3f}")

# %%
worst = int((refined.mask != (probabilities > 0.5)).flatten(1).sum(1).argmax())
plt.figure(figsize=(6, 4.5))
plt.imshow(images[worst].movedim(0, -1))
for number, phi in enumerate(refined.steps):
    plt.contour(phi[worst].detach(), levels=[0], colors=[plt.get_cmap("plasma")(0.15 + 0.25 * number)])
plt.title("zero contours of φ⁰ to φ³")
plt.axis("off")
plt.show()

# %% [markdown]
# ## Behind torchvision's Mask R-CNN
#
# Its masks are probabilities at the image's size. All masks of an image share the image's features. (The weights
# are random here: what is shown is the ten lines, not a score.)

# %%
detector = torchvision.models.detection.maskrcnn_resnet50_fpn(
    weights=None, weights_backbone=None, num_classes=2, box_score_thresh=0.0, box_detections_per_img=4, min_size=128
).eval()
refiner = ChanVeseRefiner(channels=3, features=16)
optimizer = torch.optim.Adam(refiner.parameters(), lr=1e-3)
with torch.no_grad():
    (found,) = detector([images[0]])
refined = refiner(found["masks"][:, 0], images[:1])  # M×H×W, and 1×3×H×W
loss = refiner.loss(refined, truth[:1].expand(len(found["masks"]), -1, -1))
loss.backward()
optimizer.step()
print(f"{len(refined.mask)} masks, loss {loss.item():.3f}")

# %% [markdown]
# ## What colours alone can do
#
# Without anything learnt Chan and Vese's model splits an image into two regions of nearly one colour. That is a
# matter of the image, not of a method: it finds stained nuclei, and no people in a street.

# %%
phi = chan_vese_segment(images[:1], mu=0.1)
print(f"energy {chan_vese_energy(images[:1], phi > 0, mu=0.1).item():.1f}, IoU {iou(phi > 0, truth[:1]):.3f}")

# %% [markdown]
# ## The multiphase layer and the recurrence
#
# `MultiphaseLevelSet` refines the scores of any network; `DMLS` runs any network several times, each time on the
# image and its own previous prediction. What it returns holds the scores of every step, before and after their
# evolution.

# %%
layer = MultiphaseLevelSet()
scores = network(images)
print("labels that the layer changes:", (layer(scores).argmax(1) != scores.argmax(1)).float().mean().item())

deeplab = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=2)
recurrent = DMLS(2, deeplab, steps=2)
optimizer = torch.optim.AdamW(recurrent.parameters(), lr=1e-3)
for step in range(2):
    optimizer.zero_grad()
    output = recurrent(images[:2])
    predictions = [scores for one in output.steps for scores in one]
    loss = torch.stack([F.cross_entropy(scores, masks[:2]) for scores in predictions]).mean()
    loss.backward()
    optimizer.step()
    print(f"step {step}: {len(predictions)} predictions, loss {loss.item():.3f}")

# %% [markdown]
# A network of your own needs no wrapper, either:

# %%
mine = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
print(tuple(DMLS(2, mine, steps=3)(images[:2]).logits.shape))
