"""Pictures of Chan-Vese evolutions: contours by iteration, the features they move on, the learnt hyperparameters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lsseg.tasks.evolution import EvolvingObject

Array = npt.NDArray[Any]


def evolution_panel(image: Array, objects: Sequence[EvolvingObject], title: str) -> Figure:
    """A row for each object: zero contours of φ⁰ to φᴺ on the image, principal components of F, hyperparameters.

    Args:
        image: H×W×3 floats in [0, 1], or uint8.
        objects: What to show.
        title: Above the rows.
    """
    figure = Figure(figsize=(12, 3.1 * len(objects) + 0.7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(objects), 3, squeeze=False)
    for row, thing in zip(axes, objects, strict=True):
        _draw_contours(row[0], image, thing)
        _draw_features(row[1], thing)
        _draw_numbers(row[2], thing)
    figure.suptitle(title, fontsize=10)
    return figure


def principal_components(features: Array) -> npt.NDArray[np.float64]:
    """The three strongest principal components of D×R×S features as colours, R×S×3 in [0, 1]."""
    depth, rows, columns = features.shape
    flat = features.reshape(depth, -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(flat @ flat.T)
    strongest = vectors[:, ::-1][:, :3].T @ flat
    strongest *= np.where(strongest.sum(1, keepdims=True) < 0, -1, 1)
    low, high = np.percentile(strongest, [2, 98], axis=1, keepdims=True)
    scaled = np.clip((strongest - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.zeros((3, rows * columns))  # fewer than three features leave the others black
    colors[: len(scaled)] = scaled
    result: npt.NDArray[np.float64] = colors.reshape(3, rows, columns).transpose(1, 2, 0)
    return result


def _draw_contours(axis: Any, image: Array, thing: EvolvingObject) -> None:
    left, top, right, bottom = thing.box
    axis.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")
    rows, columns = thing.phi[0].shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    for number, phi in enumerate(thing.phi):
        values = phi.detach().float().cpu().numpy()
        color = colormaps["plasma"](0.15 + 0.75 * number / max(1, len(thing.phi) - 1))
        if min(values.shape) > 1 and values.min() < 0 < values.max():
            axis.contour(x, y, values, levels=[0.0], colors=[color], linewidths=1.3)
        axis.plot([], [], color=color, label=f"$\\phi^{{{number}}}$")
    margin = 0.08 * max(right - left, bottom - top)
    axis.set(xlim=(left - margin, right + margin), ylim=(bottom + margin, top - margin))
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.03, 1.0), borderaxespad=0)
    axis.set_axis_off()
    axis.set_title(thing.name, fontsize=9)


def _draw_features(axis: Any, thing: EvolvingObject) -> None:
    axis.set_axis_off()
    values = thing.phi[-1].detach().float().cpu().numpy()
    if thing.features is None:
        axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_title("final φ", fontsize=9)
    else:
        colors = principal_components(thing.features.detach().float().cpu().numpy())
        # On a grid that may be coarser than φ's; the last cells of it may reach beyond.
        bottom, right = (cells * -(-side // cells) for cells, side in zip(colors.shape, values.shape, strict=False))
        axis.imshow(colors, extent=(-0.5, right - 0.5, bottom - 0.5, -0.5), interpolation="nearest")
        axis.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(values.shape[0] - 0.5, -0.5))
        axis.set_title("features (three principal components), final contour", fontsize=9)
    if min(values.shape) > 1 and values.min() < 0 < values.max():
        axis.contour(values, levels=[0.0], colors="w", linewidths=1.2)


def _draw_numbers(axis: Any, thing: EvolvingObject) -> None:
    axis.set_title("hyperparameters by iteration", fontsize=9)
    if thing.numbers is None:
        axis.text(0.5, 0.5, "set by hand", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    epsilon, dt = (x[0].detach().float().cpu().numpy() for x in (thing.numbers.epsilon, thing.numbers.dt))
    steps = np.arange(1, len(dt) + 1)
    for values, name, marker in ((epsilon, r"$\varepsilon_n$", "o"), (dt, r"$\Delta t_n$", "s")):
        axis.plot(steps, values, marker=marker, label=name)
    scalars = (("lambda1", r"$\lambda_1$", "--"), ("lambda2", r"$\lambda_2$", ":"), ("mu", r"$\mu$", "-."))
    for key, name, style in scalars:
        value = float(getattr(thing.numbers, key)[0].detach())
        axis.axhline(value, linestyle=style, color="0.4", linewidth=1, label=f"{name} = {value:.2f}")
    axis.set(ylim=(0, 2.05), xticks=steps, xlabel="iteration")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
