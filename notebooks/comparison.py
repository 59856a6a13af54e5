# %% [markdown]
# # Comparing the runs of a suite
#
# `lsseg ablate SUITE` leaves a folder with one subfolder for each run. Everything in its report can be had as tables,
# with the counts of every test image behind them.
#
# `FOLDER` is the suite's folder: `lsseg ablate experiments/quickstart.yaml --jobs 2` makes this one in minutes.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lsseg.ablation.results import load_description, load_results, rows_of, run_table, scores_of, variant_table
from lsseg.callbacks.results import image_scores
from lsseg.files import read_jsonl

FOLDER = Path(os.environ.get("LSSEG_SUITE", "../runs/quickstart"))

description = load_description(FOLDER)
results = load_results(FOLDER, description)
rows = rows_of(results, description)
table = variant_table(rows).set_index("variant")
table[[column for column in table if column in ("label", "seeds", "miou", "miou_std", "boundary_f1_1px")]]

# %% [markdown]
# ## Differences to the baseline
#
# The interval is a paired bootstrap over the test images: it says how much the choice of images moves the difference.
# How much the seed does, `by_seed` says; look at both before believing in a gain.

# %%
baseline = description.baseline
score = scores_of(results)[0]  # mIoU, or AP of instances
found = {row.variant.label: row.all.differences[score.name] for row in rows if score.name in row.all.differences}
pd.DataFrame(
    [{"variant": label, "Δ": d.mean, "low": d.low, "high": d.high, "by seed": d.by_seed} for label, d in found.items()]
)

# %% [markdown]
# ## Image by image
#
# Two methods on the same images: above the diagonal the second one is better.

# %%
first = {variant: next(r for r in results if r.variant == variant) for variant in {r.variant for r in results}}
other = next((variant for variant in table.index if variant in first and variant != baseline), baseline)
x, y = (100 * image_scores(first[v].kind, first[v].counts) for v in (baseline, other))
figure, axis = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
axis.scatter(x, y, s=12)
axis.axline((np.nanmean(x), np.nanmean(x)), slope=1, color="0.6")
axis.set(xlabel=table.label[baseline], ylabel=table.label[other], title="score of every test image (%)")
plt.show()
best = np.argsort(x - y)[: min(5, len(x))]
pd.DataFrame({"image": first[baseline].names[best], baseline: x[best], other: y[best]})

# %% [markdown]
# ## Learning curves, and any other number that was logged

# %%
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for result in results:
    logged = pd.DataFrame(read_jsonl(result.folder / "metrics.jsonl"))
    if "train/loss" in logged:
        logged.dropna(subset=["train/loss"]).plot(x="step", y="train/loss", ax=axis, label=result.folder.name)
axis.legend(fontsize=7)
plt.show()
run_table(results).iloc[:, :6]

# %% [markdown]
# ## The same from Weights & Biases
#
# Runs of a suite share a group there, the variant is their tag, and their configuration is under `cfg`. This needs a
# login, and `LSSEG_WANDB` in the environment: ENTITY/PROJECT.

# %%
PROJECT = os.environ.get("LSSEG_WANDB")
if PROJECT:
    import wandb

    runs = wandb.Api().runs(PROJECT, {"group": description.name})
    scores = [{"variant": run.tags[0], "miou": 100 * run.summary["test/miou"]} for run in runs]
    online = pd.DataFrame(scores).groupby("variant")["miou"].agg(["mean", "std", "count"])
    print(online)
