import numpy as np
import pytest
import torch

from lsseg.data import SyntheticInstances
from lsseg.data.instances import InstanceSamples, collate_instances, from_map, from_masks
from lsseg.data.scenes import draw_objects, draw_scene
from lsseg.errors import InputError


def test_overlapping_masks_go_into_layers(masks_of):
    masks = np.zeros((4, 5, 6), bool)
    masks[0, :3], masks[1, 2:4], masks[2, 4:], masks[3, 0, 0] = True, True, True, True
    found = from_masks(list(masks), [0, 1, 2, 0], [False, False, True, False], (5, 6))
    assert found.layer.tolist() == [0, 1, 0, 1]
    assert all((one == two).all() for one, two in zip(masks_of(found), masks, strict=True))
    assert found.crowd.tolist() == [False, False, True, False]
    assert from_masks([], [], [], (5, 6)).layers.shape == (1, 5, 6)


class Sized:
    """One image with three objects, one of them a single pixel in the corner."""

    def __len__(self):
        return 1

    def name(self, index):
        return "one"

    def read(self, index):
        ids = np.zeros((40, 60), np.int32)
        ids[5:20, 10:30], ids[39, 59], ids[25:30, 0:4] = 1, 2, 3
        g = np.random.default_rng(0)
        return g.integers(0, 256, (40, 60, 3), np.uint8), from_map(ids, [0, 1, 0])


def sample(transform, training, index=0):
    return InstanceSamples(Sized(), 2, transform, training)[index]


def unchanged(image, layers):
    return image, layers


def test_boxes_are_the_edges_of_the_masks():
    found = sample(unchanged, True)["instances"]
    assert found["boxes"].tolist() == [[10, 5, 30, 20], [59, 39, 60, 40], [0, 25, 4, 30]]
    assert found["labels"].tolist() == [0, 1, 0]


def test_what_a_crop_leaves_out_is_dropped_and_the_rest_numbered_anew():
    def crop(image, layers):
        return image[..., 24:, :], layers[..., 24:, :]

    found = sample(crop, True)["instances"]
    assert found["labels"].tolist() == [1, 0]
    assert found["boxes"].tolist() == [[59, 15, 60, 16], [0, 1, 4, 6]]
    assert sorted(np.unique(found["layers"]).tolist()) == [0, 1, 2]


def test_in_evaluation_objects_stay_at_the_size_of_the_file():
    data = SyntheticInstances(4, 4, 4, size=(40, 60), short_side=20, num_workers=0)
    item = data.samples(data.source("test"), training=False)[0]
    assert item["image"].shape == (3, 20, 30)
    assert item["instances"]["layers"].shape == (1, 40, 60)
    assert item["size"] == (40, 60)


def test_a_copy_that_fills_up_a_rank_has_no_objects():
    item = sample(unchanged, False, -1)
    assert item["index"] == -1
    assert len(item["instances"]["labels"]) == 0


def test_training_is_the_same_for_the_same_epoch_and_differs_between_epochs():
    data = SyntheticInstances(4, 4, 4, size=(48, 64), crop_size=(32, 32), photometric=0.2, num_workers=0)
    samples = data.samples(data.source("train"), training=True)
    first, again, later = samples[(0, 1)], samples[(0, 1)], samples[(1, 1)]
    torch.testing.assert_close(first["image"], again["image"], rtol=0, atol=0)
    assert not torch.equal(first["image"], later["image"])


def test_a_batch_holds_images_of_any_size():
    items = [sample(unchanged, True), sample(lambda i, m: (i[..., :20], m[..., :20]), True)]
    batch = collate_instances(items)
    assert [image.shape[-1] for image in batch["image"]] == [60, 20]
    assert batch["index"].tolist() == [0, 0]


def test_the_objects_of_a_scene_are_those_of_its_labels():
    for index in range(4):
        image, mask = draw_scene(3, index, void_width=0)
        same, ids, kinds = draw_objects(3, index)
        np.testing.assert_array_equal(image, same)
        np.testing.assert_array_equal(mask, np.array([0, *kinds])[ids])


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(InputError, match=r"one: an object has the label 1; expected 0\.\.0"):
        InstanceSamples(Sized(), 1, unchanged, True)[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"short_side": 0}, "short_side"),
        ({"short_side": (30, 20)}, "short_side"),
        ({"longest_side": 50}, "longest_side"),
        ({"short_side": 60, "longest_side": 50}, "longest_side"),
        ({"crop_size": (0, 3)}, "crop_size"),
        ({"photometric": 2.0}, "photometric"),
        ({"batch_size": 0}, "batch_size"),
        ({"objects": 0}, "objects"),
    ],
)
def test_wrong_options_are_named(options, match):
    with pytest.raises(InputError, match=match):
        SyntheticInstances(**options)


# --- COCO's format
