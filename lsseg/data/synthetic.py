"""Provides generated scenes, with label maps or as objects, whose outlines are hard for level sets.

The scenes need no download and are equal on every machine.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lsseg.data.instances import InstanceData, Instances, InstanceSource, from_map
from lsseg.data.module import SPLITS, SegmentationData, Split
from lsseg.data.scenes import CLASSES, draw_objects, draw_scene
from lsseg.data.source import Source
from lsseg.errors import ArgumentError, require


def _lengths(*images: int) -> dict[Split, int]:
    for split, number in zip(SPLITS, images, strict=True):
        require(number >= 0, f"{split}_images", number, "must not be negative")
    return dict(zip(SPLITS, images, strict=True))


MOST = (2**32 - len(SPLITS)) // len(SPLITS)  # each split has a stream of 32 bits of its own


class Generated:
    """Holds the length, seed and parameters of a split of generated scenes.

    Args:
        length: Number of scenes.
        seed: Seed of the split.
        **parameters: Parameters of the function that draws the scenes.
    """

    def __init__(self, length: int, seed: int, **parameters: Any) -> None:
        self.length, self.seed, self.parameters = length, seed, parameters

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """Return the name of a scene, which contains its index."""
        return f"scene{index:05d}"


class Scenes(Generated):
    """Draws each scene of a split and its label map when it is read (see :func:`lsseg.data.scenes.draw_scene`)."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Draw one scene and its label map."""
        return draw_scene(self.seed, index, **self.parameters)


class SyntheticShapes(SegmentationData):
    """Draws textured shapes with overlapping colours, thin parts, holes, contact, blurred edges and void borders.

    Args:
        train_images: Number of scenes in the training split.
        val_images: Number of scenes in the validation split.
        test_images: Number of scenes in the test split.
        size: Height, width of a scene in pixels.
        difficulty: 0 (clean, distinct colours) to 1 (noise and overlap close to the limit).
        objects: Mean number of objects in a scene.
        void_width: Width in pixels of the void border around half of the objects; 0 draws none.
        data_seed: Seed of the scenes; it does not depend on the run's seed, so that all runs see one data set.
        scale: Smallest and largest random scale in training.
        photometric: Strength of the colour jitter in training, 0 to 1.
        **options: See :class:`SegmentationData`.
    """

    class_names = tuple(name for name, _ in CLASSES)
    palette = tuple(color for _, color in CLASSES)

    def __init__(
        self,
        train_images: int = 2000,
        val_images: int = 64,
        test_images: int = 128,
        size: tuple[int, int] = (96, 128),
        difficulty: float = 0.5,
        objects: int = 6,
        void_width: int = 1,
        data_seed: int = 0,
        scale: tuple[float, float] = (1.0, 1.0),
        photometric: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(scale=scale, photometric=photometric, **options)
        self.lengths = _lengths(train_images, val_images, test_images)
        require(0 <= data_seed <= MOST, "data_seed", data_seed, f"must lie in 0..{MOST}")
        self.data_seed = data_seed
        self.parameters: dict[str, Any] = {
            "size": size,
            "difficulty": difficulty,
            "objects": objects,
            "void_width": void_width,
        }
        try:
            draw_scene(0, 0, **self.parameters)
        except ValueError as error:
            raise ArgumentError(str(error)) from error

    def source(self, split: Split) -> Source:
        """Return the scenes of a split; no scene is in two splits."""
        return Scenes(self.lengths[split], 3 * self.data_seed + SPLITS.index(split), **self.parameters)


class SceneObjects(Generated):
    """Draws each scene of a split and its objects when it is read (see :func:`lsseg.data.scenes.draw_objects`)."""

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], Instances]:
        """Draw one scene and its objects."""
        image, ids, kinds = draw_objects(self.seed, index, **self.parameters)
        return image, from_map(ids, [kind - 1 for kind in kinds])


class SyntheticInstances(InstanceData):
    """Draws the scenes of :class:`SyntheticShapes` as objects of six classes: thin, with holes, touching or covered.

    Args:
        train_images: Number of scenes in the training split.
        val_images: Number of scenes in the validation split.
        test_images: Number of scenes in the test split.
        size: Height, width of a scene in pixels.
        difficulty: 0 (clean, distinct colours) to 1 (noise and overlap close to the limit).
        objects: Mean number of objects in a scene.
        data_seed: Seed of the scenes; it does not depend on the run's seed, so that all runs see one data set.
        **options: See :class:`InstanceData`.
    """

    class_names = tuple(name for name, _ in CLASSES[1:])
    palette = tuple(color for _, color in CLASSES[1:])

    def __init__(
        self,
        train_images: int = 2000,
        val_images: int = 64,
        test_images: int = 128,
        size: tuple[int, int] = (128, 160),
        difficulty: float = 0.5,
        objects: int = 5,
        data_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lengths = _lengths(train_images, val_images, test_images)
        require(0 <= data_seed <= MOST, "data_seed", data_seed, f"must lie in 0..{MOST}")
        self.data_seed = data_seed
        self.parameters: dict[str, Any] = {"size": size, "difficulty": difficulty, "objects": objects}
        try:
            draw_objects(0, 0, **self.parameters)
        except ValueError as error:
            raise ArgumentError(str(error)) from error

    def source(self, split: Split) -> InstanceSource:
        """Return the scenes of a split; no scene is in two splits."""
        return SceneObjects(self.lengths[split], 3 * self.data_seed + SPLITS.index(split), **self.parameters)
