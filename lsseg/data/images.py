"""Images without masks, for ``predict``."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lsseg.data.source import list_images, read_image
from lsseg.data.transforms import Pair
from lsseg.errors import InputError


class Images(Dataset[dict[str, Any]]):
    """A folder of images, or of folders of images, or one image.

    Items are ``{"image": float 3×H×W in [0, 1], "size": (H, W) of the file, "path": str}``.

    Args:
        path: The folder or file.
        transform: Called with the image (3×H×W uint8) and an empty mask, returns both.

    Raises:
        InputError: If there is no image at ``path``.
    """

    def __init__(self, path: Path, transform: Pair) -> None:
        if not path.exists():
            raise InputError(f"data.images {path} does not exist; give a folder of images, or one image")
        self.paths = [path] if path.is_file() else _images_below(path)
        stems = Counter(p.stem for p in self.paths)
        double = next((p for p in self.paths if stems[p.stem] > 1), None)
        if double is not None:
            raise InputError(f"data.images: several files are named {double.stem}; their predictions would collide")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.from_numpy(read_image(self.paths[index])).permute(2, 0, 1)
        height, width = pixels.shape[-2:]
        nothing = tv_tensors.Mask(torch.zeros(height, width, dtype=torch.uint8))
        image, _ = self.transform(tv_tensors.Image(pixels), nothing)
        return {"image": image.as_subclass(torch.Tensor), "size": (height, width), "path": str(self.paths[index])}


def _images_below(folder: Path) -> list[Path]:
    """The images of a folder, or, where it has none but folders, of those (Cityscapes has one for each city)."""
    shown = sorted(part for part in folder.iterdir() if not part.name.startswith("."))
    inner = [part for part in shown if part.is_dir()]
    if inner and len(inner) == len(shown):
        return [path for part in inner for path in list_images(part)]
    return list_images(folder)
