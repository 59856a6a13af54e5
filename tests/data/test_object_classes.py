import numpy as np
import pytest

from lsseg.data import ObjectClasses, SyntheticInstances
from lsseg.data.instances import from_masks
from lsseg.data.object_classes import label_map
from lsseg.errors import InputError


def test_the_smaller_object_lies_on_top_whatever_its_layer():
    large, small, other = (np.zeros((7, 9), bool) for _ in range(3))
    large[1:6, 1:8], small[2:4, 2:5], other[5:, 6:] = True, True, True
    expected = np.zeros((7, 9), int)
    expected[large], expected[small], expected[other] = 3, 1, 2
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        masks, labels = [(large, small, other)[k] for k in order], [(2, 0, 1)[k] for k in order]
        found = label_map(from_masks(masks, labels, [False] * 3, (7, 9)))
        assert found.tolist() == expected.tolist()


def test_more_classes_than_a_label_map_holds_are_refused():
    objects = SyntheticInstances(train_images=1, val_images=1, test_images=1, size=(40, 52))
    objects.class_names = tuple(map(str, range(255)))
    with pytest.raises(InputError, match=r"data\.objects has 255 classes; label maps hold 254 and background"):
        ObjectClasses(objects)


def test_no_object_is_background():
    assert not label_map(from_masks([], [], [], (3, 5))).any()


def test_any_instance_data_set_is_a_semantic_one():
    objects = SyntheticInstances(train_images=3, val_images=1, test_images=2, size=(40, 52))
    data = ObjectClasses(objects, num_workers=0, batch_size=1)
    assert data.class_names == ("background", *objects.class_names)
    assert len(data.palette) == data.num_classes
    image, labels = data.source("train").read(0)
    _, found = objects.source("train").read(0)
    assert image.shape[:2] == labels.shape
    assert ((labels > 0) == (found.layers > 0).any(0)).all()
    assert data.source("test").name(1) == objects.source("test").name(1)
    assert next(iter(data.train_dataloader()))["mask"].max() < data.num_classes
