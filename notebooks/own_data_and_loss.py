# %% [markdown]
# # Your own data and your own loss
#
# Nothing is registered anywhere: a folder of images and masks is a data set, a class in any importable file is a loss.
# Here both are made on the spot, trained for a few updates, and used.

# %%
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import lsseg
from lsseg.cli import main

work = Path(tempfile.mkdtemp())
os.chdir(work)
sys.path.append(str(work))

# %% [markdown]
# ## A folder of images and masks
#
# `images/` and `masks/` hold files of the same names; `classes.yaml` names the values in the masks. Splits are random
# here; subfolders `train`, `val`, `test`, or lists of names, fix them.

# %%
generator = np.random.default_rng(0)
(work / "mine" / "images").mkdir(parents=True)
(work / "mine" / "masks").mkdir()
rows, columns = np.mgrid[:64, :80]
for number in range(24):
    y, x, radius = generator.integers(16, 48), generator.integers(20, 60), generator.integers(6, 15)
    disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    pixels = generator.normal(90, 25, (64, 80, 3)) + 70 * disc[..., None]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(work / "mine" / "images" / f"{number:02}.png")
    Image.fromarray(disc.astype(np.uint8)).save(work / "mine" / "masks" / f"{number:02}.png")
(work / "mine" / "classes.yaml").write_text("classes: [background, disc]\n")

# %% [markdown]
# ## A loss
#
# Any module that maps B×C×H×W scores and B×H×W labels (255 is void) to a number. Written to a file, because a run is a
# command: its configuration names the class.

# %%
(work / "my_losses.py").write_text(
    '''
import torch.nn.functional as F
from torch import Tensor, nn


class PowerJaccard(nn.Module):
    """1 - Σ p·y / Σ (p² + y² - p·y) by class, on valid pixels."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        valid = (target != 255)[:, None]
        truth = F.one_hot(target.where(target != 255, 0), logits.shape[1]).movedim(-1, 1) * valid
        share = logits.float().softmax(1) * valid
        both = (share * truth).sum((0, 2, 3))
        union = (share**2 + truth**2).sum((0, 2, 3)) - both
        return self.weight * (1 - both / union.clamp_min(1e-6)).mean()
'''
)

# %% [markdown]
# ## Training, testing, predicting
#
# In a shell this is `lsseg fit --config …`; `main` is the same command. Whatever a file says, a flag behind it wins.

# %%
(work / "mine.yaml").write_text(
    """
trainer: {max_steps: 60, val_check_interval: 30, check_val_every_n_epoch: null, enable_model_summary: false}
model:
  class_path: SegmentationTask
  init_args:
    criterion: {class_path: my_losses.PowerJaccard}
    network:
      class_path: SmpNet
      init_args:
        architecture: unet
        encoder_name: tu-test_resnet.r160_in1k
        encoder_weights: null
        decoder: {decoder_channels: [32, 16, 16, 8, 8]}
    optimizer: adamw
    lr: 0.003
data:
  class_path: FolderSegmentation
  init_args: {root: mine, batch_size: 4, eval_batch_size: 4, num_workers: 0}
"""
)
status = main(["fit", "--config", "mine.yaml", "--trainer.default_root_dir", "run", "--test_after_fit", "true"])
assert status == 0

# %% [markdown]
# The level-set loss beside it differs by one word, `--model LevelSetLossTask`; a suite compares both with intervals:
#
# ```yaml
# name: mine
# base: mine.yaml
# seeds: [0, 1, 2]
# variants:
#   - {name: jaccard, label: Power Jaccard}
#   - {name: level_set, label: Cross-entropy + level set, set: {model: LevelSetLossTask}}
# ```
#
# and the trained network is there in Python:

# %%
found = lsseg.load_run("run").predict("mine/images/03.png")
truth = np.asarray(Image.open("mine/masks/03.png"))
right = (found["labels"].numpy() == truth).mean()
phi = found["phi"][1]
print(f"{100 * right:.1f} % of the pixels of one image are right; φ of the disc: {phi.min():.2f} to {phi.max():.2f}")
assert right > 0.8
