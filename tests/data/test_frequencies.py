import numpy as np
import pytest
from PIL import Image

from lsseg.data.classes import class_frequencies, median_frequency_weights, remembered_frequencies
from lsseg.data.source import FilePairs
from lsseg.errors import InputError


class Masks:
    def __init__(self, *masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def name(self, index):
        return f"image {index}"

    def read(self, index):
        mask = np.array(self.masks[index])
        return np.zeros((*mask.shape, 3), np.uint8), mask


def test_frequencies_are_over_the_valid_pixels_of_the_images_that_have_the_class():
    source = Masks([[0, 0, 1, 255]], [[0, 0, 0, 0, 2, 2]], [[255, 255]])
    np.testing.assert_allclose(class_frequencies(source, 4), [6 / 9, 1 / 3, 2 / 6, 0])


def test_only_the_masks_of_a_folder_are_read(tmp_path):
    (tmp_path / "image.png").write_bytes(b"never opened")
    Image.fromarray(np.array([[0, 0, 1, 255]], np.uint8)).save(tmp_path / "mask.png")
    source = FilePairs([(tmp_path / "image.png", tmp_path / "mask.png")])
    np.testing.assert_allclose(class_frequencies(source, 2), [2 / 3, 1 / 3])


def test_masks_are_counted_once_until_one_of_them_changes(tmp_path, monkeypatch):
    def save(values):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "mask.png")

    save([0, 0, 1, 255])
    source = FilePairs([(tmp_path / "image.png", tmp_path / "mask.png")])
    first = remembered_frequencies(source, 2)
    np.testing.assert_allclose(first, [2 / 3, 1 / 3])
    (kept,) = (tmp_path / "cache" / "lsseg").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(FilePairs, "read_mask", None)
        assert np.array_equal(remembered_frequencies(source, 2), first)
    kept.write_text("torn")
    assert np.array_equal(remembered_frequencies(source, 2), first)
    save([0, 1, 1, 1, 1])
    np.testing.assert_allclose(remembered_frequencies(source, 2), [1 / 5, 4 / 5])
    np.testing.assert_allclose(remembered_frequencies(FilePairs(source.pairs, {0: 1, 1: 0}), 2), [4 / 5, 1 / 5])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mask.png"))  # nowhere to write
    np.testing.assert_allclose(remembered_frequencies(source, 2), [1 / 5, 4 / 5])


def test_masks_of_colours_are_counted_again_for_other_colours(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 255, 0]]], np.uint8)).save(tmp_path / "mask.png")
    red, green = (255, 0, 0), (0, 255, 0)
    for colors, found in (({red: 0, green: 1}, [1 / 3, 2 / 3]), ({green: 0, red: 1}, [2 / 3, 1 / 3])):
        source = FilePairs([(tmp_path / "image.png", tmp_path / "mask.png")], {}, colors=colors)
        np.testing.assert_allclose(remembered_frequencies(source, 2), found)


def test_weights_balance_by_the_median_and_leave_out_what_never_occurs():
    assert median_frequency_weights(np.array([0.5, 0.25, 0.0, 0.125])) == [0.5, 1.0, 0.0, 2.0]
    assert median_frequency_weights(np.zeros(3)) == [0.0, 0.0, 0.0]


def test_a_label_that_is_no_class_names_its_image():
    with pytest.raises(InputError, match="image 1: the mask holds the label 7"):
        class_frequencies(Masks([[0]], [[7]]), 3)
