"""Any instance data set as a semantic one: every pixel has the class of the object that lies there."""

from typing import Any

import numpy as np
import numpy.typing as npt

from lsseg.data.instances import InstanceData, Instances, InstanceSource
from lsseg.data.module import SegmentationData, Split
from lsseg.data.source import IGNORE_INDEX, Source
from lsseg.errors import InputError


class ObjectClasses(SegmentationData):
    """``background`` and the classes of an instance data set, whose splits it has.

    Where objects overlap the smaller one counts. A crowd, whose objects are not told apart, is of its class.

    Args:
        objects: The instance data set; what it says of sizes, crops and batches is not used.
        **options: See :class:`SegmentationData`.
    """

    def __init__(self, objects: InstanceData, **options: Any) -> None:
        super().__init__(**options)
        if objects.num_classes >= IGNORE_INDEX:
            raise InputError(
                f"data.objects has {objects.num_classes} classes; label maps hold {IGNORE_INDEX - 1} and background"
            )
        self.objects = objects
        self.class_names = ("background", *objects.class_names)
        self.palette = ((0, 0, 0), *objects.palette)

    def source(self, split: Split) -> Source:
        """The images of a split; raises what the instance data set raises."""
        try:
            return ObjectLabels(self.objects.source(split))
        except InputError as error:  # its keys stand one level deeper here
            raise InputError(str(error).replace("data.", "data.objects.")) from error


class ObjectLabels:
    """Label maps of an instance source.

    Args:
        source: Images and their objects.
    """

    def __init__(self, source: InstanceSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        """As the instance source calls the image."""
        return self.source.name(index)

    def read(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
        """Decode one image and paint its objects."""
        image, found = self.source.read(index)
        return image, label_map(found)


def label_map(found: Instances) -> npt.NDArray[np.integer]:
    """H×W labels: 0 where nothing is, 1 + the object's label where one is, the smallest where several are."""
    count = len(found.labels)
    size = sum((np.bincount(layer.ravel(), minlength=count + 1) for layer in found.layers), np.zeros(count + 1, int))
    # Ranks, not sizes, are compared: they are narrow, and this is done for every pixel of every image that is read.
    order = np.lexsort((-np.arange(count), -size[1:]))  # the largest first, of equals the last
    rank = np.zeros(count + 1, np.min_scalar_type(count))
    rank[1 + order] = np.arange(1, count + 1)
    highest = rank.take(found.layers[0])
    for layer in found.layers[1:]:
        np.maximum(highest, rank.take(layer), out=highest)
    return np.append(0, found.labels[order] + 1).astype(np.uint8).take(highest)
