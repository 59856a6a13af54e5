"""Draws and saves detected objects, and saves predictions in the formats of the Cityscapes and ADE20K servers.

Legend: n objects, H×W pixels. ``file_values`` are the classes' numbers in those files, in the order of the labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from lsseg.callbacks.drawing import BARE, bytes_of
from lsseg.data.instances import object_masks
from lsseg.files import write_text, write_whole
from lsseg.functional.instances import subpixel_contours

Array = npt.NDArray[Any]
SURE = 0.5  # least score of an object that is drawn and counted
# The colours distinguish neighbouring objects of one class.
COLORS = (
    *((230, 75, 53), (77, 187, 213), (0, 160, 135), (247, 198, 67), (126, 97, 172), (243, 155, 127)),
    *((60, 84, 136), (145, 209, 194), (220, 0, 115), (126, 166, 30), (176, 150, 105), (0, 114, 178)),
)


def draw_objects(image: Array, masks: Array, opacity: float = 0.45) -> npt.NDArray[np.uint8]:
    """Draw each object on the image in its own colour, with its contour in full colour and the best object on top.

    Args:
        image: H×W×3 floats in [0, 1], or uint8.
        masks: n×H×W bool, drawn from the last to the first (the best).
        opacity: Opacity of the colours.
    """
    canvas = bytes_of(image)
    for number in reversed(range(len(masks))):
        mask = masks[number]
        color = np.array(COLORS[number % len(COLORS)], np.float32)
        canvas[mask] = (1 - opacity) * canvas[mask] + opacity * color
        canvas[mask & ~_eroded(mask)] = color
    drawn: npt.NDArray[np.uint8] = canvas.round().astype(np.uint8)
    return drawn


def objects_panel(image: Array, truth: Array, found: Sequence[tuple[str, Array]], title: str) -> Figure:
    """Draw one row of pictures: the image, the true objects, and the found objects under each name.

    Args:
        image: H×W×3 floats in [0, 1], or uint8.
        truth: m×H×W bool.
        found: Pairs of a name and n×H×W bool masks.
        title: Text above the row.
    """
    height, width = image.shape[:2]
    columns = 2 + len(found)
    figure = Figure(figsize=(3.4 * columns, 3.4 * height / width + 0.7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, subplot_kw=BARE)[0]
    pictures = {"image": bytes_of(image).astype(np.uint8), f"truth, {len(truth)} objects": draw_objects(image, truth)}
    pictures |= {f"{name}, {len(masks)} objects": draw_objects(image, masks) for name, masks in found}
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def object_map(masks: Array, size: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """Return an H×W map in which object k has the value k + 1; where objects overlap, the first (best) one counts."""
    ids = np.zeros(size, np.uint16)
    for number in reversed(range(len(masks))):
        ids[masks[number]] = number + 1
    return ids


def object_records(
    objects: dict[str, Any], phi: Any, class_names: Sequence[str], contours: bool
) -> list[dict[str, Any]]:
    """Return objects as in COCO's result files, with names and, on request, subpixel contours.

    An object whose mask has no pixel is left out.

    Args:
        objects: ``masks`` (n×H×W bool), ``boxes``, ``scores``, ``labels``.
        phi: n×R×R on the grids of the boxes; only contours need it.
        class_names: C names.
        contours: Whether to add contours, as lists of x, y, x, y, … by marching squares on φ.
    """
    records = []
    boxes = objects["boxes"].double().cpu().numpy()
    for k, (left, top, right, bottom) in enumerate(boxes.tolist()):
        mask = objects["masks"][k].cpu().numpy().astype(np.uint8)
        if not mask.any():
            continue
        code = coco_mask.encode(np.asfortranarray(mask))
        label = int(objects["labels"][k])
        record: dict[str, Any] = {
            "category_id": label,
            "category": class_names[label],
            "score": float(objects["scores"][k]),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode()},
        }
        if contours:
            lines = subpixel_contours(phi[k].float().cpu().numpy(), boxes[k])
            record["contours"] = [line.ravel().round(3).tolist() for line in lines]
        records.append(record)
    return records


def true_masks(found: dict[str, Tensor], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the true objects at the size of a picture, m×H×W; evaluation batches have them at the file's size."""
    layers = F.interpolate(found["layers"][None].float(), size, mode="nearest-exact")[0].to(found["layers"].dtype)
    masks: npt.NDArray[np.bool_] = object_masks({**found, "layers": layers}).cpu().numpy()
    return masks


def _eroded(mask: Array) -> npt.NDArray[np.bool_]:
    """Remove the pixels with a 4-neighbour outside the mask; the image's edge removes none."""
    padded = np.pad(mask, 1, mode="edge")
    inner: npt.NDArray[np.bool_] = (
        padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    )
    return inner


def save_server_labels(labels: npt.NDArray[np.integer], file_values: Sequence[int], path: Path) -> None:
    """Save an H×W map of labels as an 8-bit PNG of the classes' official numbers."""
    write_whole(Image.fromarray(np.array(file_values, np.uint8)[labels]).save, path)


def save_server_objects(objects: dict[str, Any], file_values: Sequence[int], folder: Path, stem: str) -> None:
    """Save objects for Cityscapes: ``STEM.txt`` lists the file of the mask, the class and the confidence of each.

    An object whose mask has no pixel is left out.

    Args:
        objects: ``masks`` (n×H×W bool), ``scores``, ``labels``.
        file_values: The classes' official numbers.
        folder: Folder for the text file; the masks go into its folder ``masks``.
        stem: Name of the image.
    """
    lines = []
    rows = zip(objects["masks"].cpu().numpy(), objects["labels"].tolist(), objects["scores"].tolist(), strict=True)
    for number, (mask, label, score) in enumerate(rows):
        if mask.any():
            name = f"masks/{stem}_{number:03d}.png"
            write_whole(Image.fromarray(mask.astype(np.uint8) * 255).save, folder / name)
            lines.append(f"{name} {file_values[label]} {score:.9f}\n")
    write_text(folder / f"{stem}.txt", "".join(lines))
