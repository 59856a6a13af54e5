"""Draws segmentations and evolutions of level sets.

Legend: H×W pixels, C classes. Images are uint8 RGB or floats in [0, 1], H×W×3.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lsseg.data.source import IGNORE_INDEX
from lsseg.functional import label_boundary
from lsseg.tasks.base import EvolvingObject

Color = tuple[int, int, int]
Array = npt.NDArray[Any]
VOID_COLOR = (255, 255, 255)
ROWS = 1024  # rows of an overlay that are computed at a time
DARK = 64  # colours whose channels are all below this are not drawn in overlays
# Axes of pictures get no ticks, because making and hiding ticks takes longer than the rest of the drawing.
BARE: dict[str, Any] = {"xticks": [], "yticks": []}


def colorize(labels: Array, palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """Return the labels in their display colours, H×W×3; void is white."""
    table = np.full((256, 3), VOID_COLOR, np.uint8)
    table[: len(palette)] = palette
    return table[labels]


def overlay(image: Array, labels: Array, palette: Sequence[Color], opacity: float = 0.5) -> npt.NDArray[np.uint8]:
    """Draw the labels over the image in half-transparent colours, and the contours between labels in full colour.

    Classes with a dark colour, such as backgrounds, are not drawn, so that missed objects stay visible.
    """
    height = len(labels)
    dark = np.zeros(256, bool)
    dark[: len(palette)] = [max(color) < DARK for color in palette]
    out = np.empty((*labels.shape, 3), np.uint8)
    for top in range(0, height, ROWS):  # floats of a whole large scan would not fit into memory
        first, last = max(0, top - 1), min(height, top + ROWS + 1)  # a contour depends on one row above and below
        part = labels[first:last]
        share = np.where(dark[part], 0.0, np.where(_boundary(part), 1.0, opacity))[..., None]
        blend = (1 - share) * bytes_of(image[first:last]) + share * colorize(part, palette)
        kept = slice(top - first, top - first + ROWS)
        out[top : top + ROWS] = blend[kept].round().astype(np.uint8)
    return out


def with_contours(image: Array, labels: Array) -> npt.NDArray[np.uint8]:
    """Draw the contours between labels in white on the image."""
    drawn = np.where(_boundary(labels)[..., None], 255, bytes_of(image).round())
    return drawn.astype(np.uint8)


def boundary_errors(image: Array, truth: Array, prediction: Array, radius: int = 2) -> npt.NDArray[np.uint8]:
    """Draw the found contours in green, missed ones in blue and invented ones in red, over the faded grey image.

    A contour pixel counts as found if the other map has a contour pixel within ``radius`` pixels. The classes that meet
    there do not matter.
    """
    void = truth == IGNORE_INDEX
    prediction = np.where(void, IGNORE_INDEX, prediction)
    real, drawn = _boundary(truth), _boundary(prediction)
    near_real, near_drawn = _dilate(real, radius), _dilate(drawn, radius)
    canvas = np.repeat(bytes_of(image).mean(2, keepdims=True) * 0.35 + 150, 3, axis=2)
    canvas[void] = VOID_COLOR
    canvas[real & near_drawn] = (0, 150, 70)
    canvas[real & ~near_drawn] = (30, 70, 230)
    canvas[drawn & ~near_real] = (225, 30, 30)
    return canvas.astype(np.uint8)


def panel(
    image: Array,
    truth: Array,
    prediction: Array,
    phi: Array,
    class_names: Sequence[str],
    palette: Sequence[Color],
    phi_class: int,
    title: str,
) -> Figure:
    """Draw one row: image, truth, prediction, errors at boundaries, and φ of a class with its zero contour.

    Args:
        image: H×W×3 floats in [0, 1].
        truth: H×W labels, 255 for void.
        prediction: H×W labels.
        phi: C×H×W level-set functions, positive inside.
        class_names: C names.
        palette: C colours.
        phi_class: The class whose φ is shown.
        title: Text above the row.
    """
    height, width = truth.shape
    figure = Figure(figsize=(15, 3.1 * height / width + 0.9), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 5, subplot_kw=BARE)
    pictures = {
        "image": bytes_of(image).astype(np.uint8),
        "truth": colorize(truth, palette),
        "prediction": colorize(prediction, palette),
        "contours: found (green),\nmissed (blue), invented (red)": boundary_errors(image, truth, prediction),
    }
    for axis, (name, picture) in zip(axes, pictures.items(), strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=9)
    _draw_phi(axes[4], phi[phi_class], truth == phi_class, class_names[phi_class])
    for axis in axes:
        axis.set_axis_off()
    present = [label for label in range(len(class_names)) if (truth == label).any() or (prediction == label).any()]
    colors = [(r / 255, g / 255, b / 255) for r, g, b in palette]
    patches = [Patch(color=colors[label], label=class_names[label]) for label in present[:24]]
    if (truth == IGNORE_INDEX).any():
        patches.append(Patch(facecolor="white", edgecolor="grey", label="void"))
    figure.legend(handles=patches, loc="outside lower center", ncols=12, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def steps_panel(
    image: Array,
    truth: Array | None,
    predictions: Sequence[Array],
    phi: Sequence[Array],
    phi_class: int,
    class_names: Sequence[str],
    palette: Sequence[Color],
    title: str,
    first: int = 1,
) -> Figure:
    """Draw two rows: the labels after every step, and below them φ of one class with its zero contour.

    Args:
        image: H×W×3 floats in [0, 1], or uint8.
        truth: H×W labels, 255 for void; None if there is no truth.
        predictions: H×W labels after each of K steps.
        phi: H×W level-set functions of ``phi_class`` after each step, positive inside.
        phi_class: The class whose φ is shown.
        class_names: C names.
        palette: C colours.
        title: Text above the rows.
        first: Number of the first step.
    """
    height, width = image.shape[:2]
    columns = len(predictions) + (1 if truth is None else 2)
    figure = Figure(figsize=(3 * columns, 6.2 * height / width + 1.1), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, columns, squeeze=False, subplot_kw=BARE)
    axes[0, 0].imshow(bytes_of(image).astype(np.uint8))
    axes[0, 0].set_title("image", fontsize=9)
    inside = np.zeros((height, width), bool) if truth is None else truth == phi_class
    for number, (labels, values) in enumerate(zip(predictions, phi, strict=True), start=1):
        axes[0, number].imshow(overlay(image, labels, palette, 0.7), interpolation="nearest")
        changed = "" if number == 1 else f", {100 * np.mean(labels != predictions[number - 2]):.1f} % of pixels changed"
        axes[0, number].set_title(f"step {number + first - 1}{changed}", fontsize=9)
        _draw_phi(axes[1, number], values, inside, class_names[phi_class])
        axes[1, number].set_title(f"φ of {class_names[phi_class]}, zero contour", fontsize=9)
    if truth is not None:
        axes[0, -1].imshow(colorize(truth, palette), interpolation="nearest")
        axes[0, -1].set_title("truth", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def hardest_class(truth: Array, prediction: Array, num_classes: int) -> int:
    """Return the class with the lowest IoU above 0 among the classes with at least 0.5 % of the truth's pixels.

    If there is no such class, return the predicted class of the first pixel.
    """
    best, lowest = int(prediction.flat[0]), 2.0
    for label in range(num_classes):
        inside = truth == label
        if inside.sum() >= 0.005 * truth.size:
            chosen = (prediction == label) & (truth != IGNORE_INDEX)
            iou = (inside & chosen).sum() / (inside | chosen).sum()
            if 0 < iou < lowest:
                best, lowest = label, float(iou)
    return best


def _draw_phi(axis: Any, phi: Array, truth: Array, name: str) -> None:
    reach = float(np.abs(phi).max()) or 1.0
    axis.imshow(phi, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    drawable = min(phi.shape) > 1  # a contour needs two pixels along each axis
    if drawable and truth.any() and not truth.all():
        axis.contour(truth, levels=[0.5], colors="k", linewidths=0.6, linestyles="dotted")
    if drawable and phi.min() < 0 < phi.max():
        axis.contour(phi, levels=[0.0], colors="yellow", linewidths=1.2)
    axis.set_title(f"φ of {name}, zero contour in yellow (±{reach:.2f})", fontsize=9)


def bytes_of(image: Array) -> npt.NDArray[np.float32]:
    """Return an image, uint8 or floats in [0, 1], as floats from 0 to 255."""
    scale = 1.0 if image.dtype == np.uint8 else 255.0
    return np.clip(image.astype(np.float32) * scale, 0, 255)


def _boundary(labels: Array) -> npt.NDArray[np.bool_]:
    boundary: npt.NDArray[np.bool_] = label_boundary(torch.from_numpy(labels.astype(np.int64))[None])[0].numpy()
    return boundary


def _dilate(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    near = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 2 * radius + 1, 1, radius)
    grown: npt.NDArray[np.bool_] = (near[0] > 0).numpy()
    return grown


def evolution_panel(image: Array, objects: Sequence[EvolvingObject], title: str) -> Figure:
    """Draw a row for each object: zero contours of φ⁰ to φᴺ on the image, principal components of F, hyperparameters.

    Args:
        image: H×W×3 floats in [0, 1], or uint8.
        objects: The objects to draw.
        title: Text above the rows.
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
    """Return the three strongest principal components of D×R×S features as colours, R×S×3 in [0, 1]."""
    depth, rows, columns = features.shape
    flat = features.reshape(depth, -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(flat @ flat.T)
    strongest = vectors[:, ::-1][:, :3].T @ flat
    strongest *= np.where(strongest.sum(1, keepdims=True) < 0, -1, 1)
    low, high = np.percentile(strongest, [2, 98], axis=1, keepdims=True)
    scaled = np.clip((strongest - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.zeros((3, rows * columns))  # with fewer than three features, the other channels stay 0
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
        axis.plot([], [], color=color, label=thing.labels[number] if thing.labels else f"$\\phi^{{{number}}}$")
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
        # The grid of the features may be coarser than φ's. Its last cells may then extend beyond φ.
        bottom, right = (cells * -(-side // cells) for cells, side in zip(colors.shape, values.shape, strict=False))
        axis.imshow(colors, extent=(-0.5, right - 0.5, bottom - 0.5, -0.5), interpolation="nearest")
        axis.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(values.shape[0] - 0.5, -0.5))
        axis.set_title("features (three principal components), final contour", fontsize=9)
    if min(values.shape) > 1 and values.min() < 0 < values.max():
        axis.contour(values, levels=[0.0], colors="w", linewidths=1.2)


def _draw_numbers(axis: Any, thing: EvolvingObject) -> None:
    axis.set_title("hyperparameters by iteration", fontsize=9)
    if thing.numbers is None:
        axis.text(0.5, 0.5, "no learnt hyperparameters", ha="center", transform=axis.transAxes)
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
