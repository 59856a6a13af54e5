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
        found = from_masks(masks, labels, [False] * 3, (7, 9))
        assert label_map(found, np.array([1, 2, 3], np.uint8)).tolist() == expected.tolist()
        # What lies on top is an object's size, whatever its class is: the small one is background here.
        grouped = label_map(found, np.array([0, 1, 1], np.uint8))
        assert grouped.tolist() == (expected > 1).astype(int).tolist()


def test_more_classes_than_a_label_map_holds_are_refused():
    objects = SyntheticInstances(train_images=1, val_images=1, test_images=1, size=(40, 52))
    objects.class_names = tuple(map(str, range(255)))
    with pytest.raises(InputError, match=r"objects must have 1 to 254 classes besides background, not 255"):
        ObjectClasses(objects)


def test_no_object_is_background():
    assert not label_map(from_masks([], [], [], (3, 5)), np.array([1], np.uint8)).any()


def test_any_instance_data_set_is_a_semantic_one():
    objects = SyntheticInstances(train_images=3, val_images=1, test_images=2, size=(40, 52))
    objects.value_range = (0.0, 4095.0)
    data = ObjectClasses(objects, num_workers=0, batch_size=1)
    assert data.value_range == (0.0, 4095.0)  # photographs are read as the training images are
    assert data.class_names == ("background", *objects.class_names)
    assert len(data.palette) == data.num_classes
    image, labels = data.source("train").read(0)
    _, found = objects.source("train").read(0)
    assert image.shape[:2] == labels.shape
    assert ((labels > 0) == (found.layers > 0).any(0)).all()
    assert data.source("test").name(1) == objects.source("test").name(1)
    assert next(iter(data.train_dataloader()))["mask"].max() < data.num_classes


def test_classes_may_be_grouped():
    objects = SyntheticInstances(train_images=2, val_images=1, test_images=1, size=(40, 52))
    first, *others = objects.class_names
    grouped = ObjectClasses(objects, groups={"rest": others, "first": [first]})
    assert grouped.class_names == ("background", "rest", "first")
    assert len(grouped.palette) == 3
    for index in range(2):
        labels = ObjectClasses(objects).source("train").read(index)[1]
        expected = np.select([labels == 0, labels == 1], [0, 2], 1)
        assert (grouped.source("train").read(index)[1] == expected).all()
    partial = ObjectClasses(objects, groups={"rest": others}).source("train").read(0)[1]
    assert set(np.unique(partial)) <= {0, 1}


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ({"all": ["rng"]}, r"groups\.all: the objects have no class 'rng'; they have ring"),
        ({"a": ["ring"], "b": ["ring"]}, r"groups\.b: 'ring' is in another group already"),
        ({"a": []}, r"groups\.a holds no class"),
        ({"background": ["ring"]}, r"groups: background cannot be a class, because"),
        ({}, r"groups must have 1 to 254 classes besides background, not 0"),
    ],
)
def test_wrong_groups_are_refused(groups, line):
    objects = SyntheticInstances(train_images=1, val_images=1, test_images=1, size=(40, 52))
    with pytest.raises(InputError, match=line):
        ObjectClasses(objects, groups=groups)
