import builtins

import numpy as np
import pytest

from lsseg.errors import InputError
from lsseg.functional.dense_crf import DenseCRF
from lsseg.tasks import SegmentationTask


def mean_field(probabilities, image, crf, iterations):
    """Mean field with all pairs of pixels, symmetrically normalised kernels (Krähenbühl 2011, algorithm 1)."""
    classes, height, width = probabilities.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(float)
    place = np.stack([x, y], 1)
    color = image.reshape(-1, 3).astype(float)

    def kernel(features):
        k = np.exp(-0.5 * np.square(features[:, None] - features[None]).sum(2))
        scale = 1 / np.sqrt(k.sum(1) + 1e-20)
        return k * scale[:, None] * scale

    smooth = crf.smoothness_weight * kernel(place / crf.smoothness_xy)
    alike = crf.appearance_weight * kernel(np.concatenate([place / crf.appearance_xy, color / crf.appearance_rgb], 1))
    unary = np.log(np.clip(probabilities, 1e-8, 1)).reshape(classes, -1)
    q = probabilities.reshape(classes, -1)
    for _ in range(iterations):
        q = np.exp(unary + q @ (smooth + alike))  # what differs pays, so what agrees gains
        q = q / q.sum(0)
    return q.reshape(probabilities.shape)


def noisy_example(height=21, width=30):
    g = np.random.default_rng(0)
    truth = np.hypot(*(np.mgrid[:height, :width] - np.array([10, 14])[:, None, None])) < 7
    image = np.where(truth[..., None], (200, 80, 60), (60, 90, 180)) + g.normal(0, 8, (height, width, 3))
    logits = np.stack([~truth, truth, 0 * truth]) * 1.2 + g.normal(0, 1, (3, height, width))
    logits[2] -= 1
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    return truth, image.clip(0, 255).astype(np.uint8), probabilities


@pytest.mark.extra("crf")
def test_is_mean_field_over_all_pairs():
    truth, image, probabilities = noisy_example()
    crf = DenseCRF(appearance_xy=20, appearance_rgb=20)
    ours, exact = crf(probabilities, image, 5), mean_field(probabilities, image, crf, 5)
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-4)
    assert np.array_equal(ours.argmax(0), exact.argmax(0))
    assert np.abs(ours - exact).mean() < 6e-4  # the lattice only comes close to the sums over all pairs
    before, after = ((p.argmax(0) == truth).mean() for p in (probabilities, ours))
    assert after > before + 0.1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"appearance_weight": -1}, r"appearance_weight must not be negative"),
        ({"smoothness_xy": 0}, r"smoothness_xy must be positive"),
    ],
)
def test_wrong_values_are_named(options, match):
    with pytest.raises(InputError, match=match):
        DenseCRF(**options)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pydensecrf"):
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'lsseg\[crf\]'"):
        DenseCRF()(*noisy_example()[:0:-1], 10)
    with pytest.raises(InputError, match=r"pip install 'lsseg\[crf\]'"):
        SegmentationTask(2, crf_iterations=10)  # before anything is trained
