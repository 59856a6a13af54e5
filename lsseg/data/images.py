"""Images without masks, for ``predict``."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lsseg.data.pixels import ValueRange, image_size, read_image
from lsseg.data.source import files_below, same_name
from lsseg.data.transforms import Pair
from lsseg.errors import ArgumentError, InputError, refuse_all


class Images(Dataset[dict[str, Any]]):
    """All images of a folder and of the folders in it, or one image.

    Items are ``{"image": uint8 3×H×W, "size": (H, W) of the file as it is seen, "path": str}``.

    Args:
        path: The folder or file.
        transform: Called with the image (3×H×W uint8) and an empty mask, returns both.
        value_range: Values of black and white in images that are not 8-bit (see :func:`~lsseg.data.pixels.read_image`).

    Attributes:
        paths: Paths of the files, sorted.
        names: What to call them, all different: their paths below the folder without the suffix, and with it where two
            differ in nothing else.

    Raises:
        InputError: If there is no image at ``path``.
    """

    def __init__(self, path: Path, transform: Pair, value_range: ValueRange | None = None) -> None:
        if not path.exists():
            raise ArgumentError(f"images {path} does not exist; give a folder of images, or one image")
        self.paths = [path] if path.is_file() else files_below(path)
        if not self.paths:
            raise ArgumentError(f"images: there is no image in {path}")
        self.names = _names(self.paths, path.parent if path.is_file() else path)
        self.transform = transform
        self.value_range = value_range

    def check(self) -> None:
        """Look at the heads of all files, before any is predicted.

        Raises:
            InputError: If files are missing or no images; names them all.
        """
        problems = []
        for path in self.paths:
            try:
                image_size(path)
            except InputError as error:
                problems.append(str(error))
        refuse_all("data.images", problems)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.from_numpy(read_image(self.paths[index], self.value_range)).permute(2, 0, 1)
        height, width = pixels.shape[-2:]
        nothing = tv_tensors.Mask(torch.zeros(height, width, dtype=torch.uint8))
        image, _ = self.transform(tv_tensors.Image(pixels), nothing)
        return {"image": image.as_subclass(torch.Tensor), "size": (height, width), "path": str(self.paths[index])}


def _names(paths: list[Path], folder: Path) -> list[str]:
    short = [same_name(path.relative_to(folder).with_suffix("").as_posix()) for path in paths]
    double = Counter(short)
    whole = [same_name(path.relative_to(folder).as_posix()) for path in paths]
    return [long if double[name] > 1 else name for name, long in zip(short, whole, strict=True)]
