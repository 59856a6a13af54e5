"""Tests of the synthetic scenes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lsseg.data import scenes
from lsseg.data.scenes import CLASSES, VOID, draw_scene

FROZEN = "9187e51cab152ccc08bb70c0d5387c21e7b0acbc349234d9c0b73b3b9421ccdc"


def digest() -> str:
    """sha256 over the bytes of a few scenes that differ in every option."""
    total = hashlib.sha256()
    for index in range(12):
        size = [(96, 128), (49, 131), (128, 64)][index % 3]
        image, mask = draw_scene(7, index, size, difficulty=index % 5 / 4, objects=2 + index, void_width=index % 4)
        total.update(image.tobytes() + mask.tobytes())
    return total.hexdigest()


def test_same_bytes_on_every_machine() -> None:
    """The scenes are part of the project's data: published numbers rest on them.

    This digest guards "the same data on every machine"; change it only knowingly, when the scenes are meant to change.
    """
    assert digest() == FROZEN


def test_another_process_draws_the_same() -> None:
    """Neither hash seeds nor the number of OpenCV threads change a scene."""
    # The module is run by its path: importing the whole package would take seconds.
    code = (
        "import cv2, hashlib, runpy, sys; cv2.setNumThreads(1); "
        "draw = runpy.run_path(sys.argv[1])['draw_scene']; "
        "print(hashlib.sha256(b''.join(part.tobytes() for i in range(4) for part in draw(8, i))).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(Path(scenes.__file__).resolve())]
    env = {**os.environ, "PYTHONHASHSEED": "3"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(part.tobytes() for i in range(4) for part in draw_scene(8, i)))
    assert done.stdout.strip() == here.hexdigest()


def test_global_random_state_is_neither_read_nor_changed() -> None:
    """A scene depends on its arguments alone and leaves NumPy's global generator as it was."""
    np.random.seed(1)  # noqa: NPY002
    first = draw_scene(3, 5)
    expected = np.random.RandomState(1).randint(1 << 30)
    assert np.random.randint(1 << 30) == expected  # noqa: NPY002
    second = draw_scene(3, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_seed_and_index_change_the_scene() -> None:
    """All pairs of seed and index give different scenes, also when the two are swapped."""
    seen = {draw_scene(seed, index, (48, 48))[0].tobytes() for seed in range(4) for index in range(4)}
    assert len(seen) == 16


def test_labels_are_valid_and_every_class_occurs() -> None:
    """Over 60 scenes each class is in a good share of the images and the background leads without drowning them."""
    masks = [draw_scene(0, index)[1] for index in range(60)]
    counts = np.array([np.bincount(mask.ravel(), minlength=256) for mask in masks])
    valid = [*range(len(CLASSES)), VOID]
    assert np.delete(counts, valid, axis=1).sum() == 0
    assert ((counts[:, : len(CLASSES)] > 0).mean(axis=0) > 0.3).all()
    share = counts.sum(axis=0) / counts.sum()
    assert 0.5 < share[0] < 0.7
    assert share[1 : len(CLASSES)].min() > 0.01


def test_rings_have_holes() -> None:
    """In many scenes a ring encloses background: non-ring pixels cut off from the border, partly of label 0."""
    holed = 0
    for index in range(30):
        mask = draw_scene(1, index, void_width=0)[1]
        _, parts = cv2.connectedComponents((mask != scenes.RING).astype(np.uint8), connectivity=4)
        edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        hole = ~np.isin(parts, edge) & (parts > 0)
        holed += int(np.count_nonzero(hole & (mask == 0)) >= 20)
    assert holed >= 6


def test_void_lies_on_outlines_and_spares_thin_objects() -> None:
    """Without a void border there is no 255; with one, thin objects keep every pixel and half the outlines stay."""
    void = outline = 0
    for index in range(10):
        bare, bordered = (draw_scene(2, index, void_width=width)[1] for width in (0, 1))
        assert VOID not in bare
        assert np.array_equal(bordered == scenes.WIRE, bare == scenes.WIRE)
        assert np.array_equal(bordered == scenes.DOTS, bare == scenes.DOTS)
        kept = bordered != VOID
        assert np.array_equal(bordered[kept], bare[kept])
        change = cv2.dilate(bare, np.ones((3, 3))) != cv2.erode(bare, np.ones((3, 3)))
        assert change[~kept].all()
        void += int(np.count_nonzero(~kept))
        outline += int(np.count_nonzero(change & (bare != scenes.WIRE) & (bare != scenes.DOTS)))
    assert 0.3 < void / outline < 0.8


@pytest.mark.parametrize("size", [(16, 16), (48, 48), (33, 77), (131, 49), (16, 300), (257, 512)])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_any_size(size: tuple[int, int], difficulty: float) -> None:
    """Odd and lopsided sizes work and hold objects."""
    for index in range(4):
        image, mask = draw_scene(4, index, size, difficulty)
        assert image.shape == (*size, 3)
        assert mask.shape == size
        assert image.dtype == mask.dtype == np.uint8
        assert len(np.unique(mask)) > 1


def test_difficulty_hides_the_objects() -> None:
    """Seen by colour alone, objects stand out less from the background as the difficulty grows."""

    def contrast(difficulty: float) -> float:
        ratios = []
        for index in range(20):
            image, mask = draw_scene(6, index, difficulty=difficulty, void_width=0)
            inside, outside = image[mask > 0].astype(float), image[mask == 0].astype(float)
            gap = np.abs(inside.mean(axis=0) - outside.mean(axis=0)).max()
            ratios.append(gap / (inside.std() + outside.std()))
        return float(np.mean(ratios))

    easy, middle, hard = (contrast(d) for d in (0.0, 0.5, 1.0))
    assert easy > middle > hard


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"seed must be an integer from 0 to 2\*\*32 - 1, got -1"),
        ({"index": 1 << 32}, r"index must be an integer from 0 to 2\*\*32 - 1, got 4294967296"),
        ({"size": (15, 64)}, r"size must be .* from 16 to 4096 pixels, got \(15, 64\)"),
        ({"size": (64, 64, 3)}, r"size must be .* got \(64, 64, 3\)"),
        ({"size": (64.0, 64)}, r"size must be .* got \(64.0, 64\)"),
        ({"difficulty": 1.1}, r"difficulty must lie between 0 and 1, got 1.1"),
        ({"difficulty": float("nan")}, r"difficulty must lie between 0 and 1, got nan"),
        ({"objects": 0}, r"objects must be an integer from 1 to 4096, got 0"),
        ({"void_width": -1}, r"void_width must be an integer from 0 \(no void border\) to 64 pixels, got -1"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    """Each bad parameter gives one line that names it and says what would be right."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        draw_scene(**{"seed": 0, "index": 0, **options})
