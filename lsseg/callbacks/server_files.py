"""Predictions in the files that the servers of Cityscapes and ADE20K take.

Legend: n objects, H×W pixels. ``file_values`` are the classes' numbers in those files, in the order of the labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lsseg.files import write_text


def save_server_labels(labels: npt.NDArray[np.integer], file_values: Sequence[int], path: Path) -> None:
    """An H×W map of labels as an 8-bit PNG of official numbers."""
    Image.fromarray(np.array(file_values, np.uint8)[labels]).save(path)


def save_server_objects(objects: dict[str, Any], file_values: Sequence[int], folder: Path, stem: str) -> None:
    """Objects as Cityscapes wants them: ``STEM.txt`` lists a mask's file, the class and the confidence of each.

    An object that no pixel shows is left out.

    Args:
        objects: ``masks`` (n×H×W bool), ``scores``, ``labels``.
        file_values: The classes' official numbers.
        folder: Gets the text, and the masks in its folder ``masks``.
        stem: Name of the image.
    """
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    lines = []
    rows = zip(objects["masks"].cpu().numpy(), objects["labels"].tolist(), objects["scores"].tolist(), strict=True)
    for number, (mask, label, score) in enumerate(rows):
        if mask.any():
            name = f"masks/{stem}_{number:03d}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name)
            lines.append(f"{name} {file_values[label]} {score:.9f}\n")
    write_text(folder / f"{stem}.txt", "".join(lines))
