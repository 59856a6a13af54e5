"""The official scripts on inputs whose scores are known."""

import os

import numpy as np
import pytest
from PIL import Image

from lsseg.errors import InputError
from lsseg.metrics.cityscapes import cityscapes_object_scores, cityscapes_pixel_scores

pytestmark = pytest.mark.extra("cityscapes")
ROAD, PERSON, CAR = 7, 24, 26


def save(path, values, kind=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, kind)).save(path)
    return path


def truth(root, labels, ids):
    save(root / "ulm_000000_000001_gtFine_instanceIds.png", ids, np.uint16)
    return save(root / "ulm_000000_000001_gtFine_labelIds.png", labels)


def scene():
    """40×50 of road; a large car and a small one."""
    labels = np.full((40, 50), ROAD)
    ids = labels.copy()
    for number, place in enumerate(((slice(2, 22), slice(3, 33)), (slice(30, 36), slice(10, 30)))):
        labels[place], ids[place] = CAR, 1000 * CAR + number
    return labels, ids


def test_pixel_scores_of_a_known_scene(tmp_path):
    labels, ids = scene()
    known = truth(tmp_path, labels, ids)
    perfect = cityscapes_pixel_scores([(save(tmp_path / "pred.png", labels), known)])
    assert perfect == {"miou": 1, "iiou": 1, "category_miou": 1, "category_iiou": 1}
    missed = labels.copy()
    missed[30:36] = ROAD  # the small car: 120 pixels of 720
    scores = cityscapes_pixel_scores([(save(tmp_path / "pred.png", missed), known)])
    assert scores["miou"] == pytest.approx((600 / 720 + 1280 / 1400) / 2)
    # Both cars weigh the same: each the average size of a car over its own.
    assert scores["iiou"] == pytest.approx(0.5)
    assert scores["category_miou"] == pytest.approx(scores["miou"])


def detections(root, things):
    lines = []
    for number, (mask, label, score) in enumerate(things):
        save(root / "masks" / f"{number}.png", mask.astype(int) * 255)
        lines.append(f"masks/{number}.png {label} {score}\n")
    (root / "ulm.txt").write_text("".join(lines))
    return root / "ulm.txt"


def test_object_scores_of_a_known_scene(tmp_path):
    labels, ids = scene()
    ids[0, :] = PERSON  # a group, which nobody needs to find
    truth(tmp_path, labels, ids)
    known = tmp_path / "ulm_000000_000001_gtFine_instanceIds.png"
    masks = [ids == 1000 * CAR, ids == 1000 * CAR + 1]

    def scores(*things):
        return cityscapes_object_scores([(detections(tmp_path / "found", things), known)], tmp_path / "found")

    whole = scores((masks[0], CAR, 0.9), (masks[1], CAR, 0.8))
    assert whole == pytest.approx(
        {"ap": 1, "ap50": 1, "ap/car": 1} | {k: v for k, v in whole.items() if v != v}, nan_ok=True
    )
    shorter = masks[1].copy()
    shorter[:, 25:] = False  # 15 of 20 columns: found up to an overlap of 0.70
    part = scores((masks[0], CAR, 0.9), (shorter, CAR, 0.8))
    assert part["ap50"] == 1
    assert part["ap/car"] == pytest.approx((5 * 1 + 5 * 0.5) / 10, abs=0.13)
    assert scores((masks[0], CAR, 0.9), (masks[1], PERSON, 0.8))["ap50"] < 1
    assert not [name for name in os.listdir(".") if name.endswith(".json")]  # the scripts' own cache and notes


def test_a_file_that_the_scripts_refuse(tmp_path):
    labels, ids = scene()
    known = truth(tmp_path, labels, ids)
    with pytest.raises(InputError, match="Cityscapes' scripts refuse a file: Image heights"):
        cityscapes_pixel_scores([(save(tmp_path / "pred.png", labels[:-1]), known)])
