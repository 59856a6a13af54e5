"""The Chan-Vese refiner of anybody's masks."""

import pytest
import torch

from lsseg import ChanVeseRefiner
from lsseg.functional import chan_vese_evolve, tsdf
from lsseg.losses import TSDFLoss


@pytest.fixture
def scene():
    """Features that tell inside from outside, the truth, and a predictor's mask that is off by some pixels."""
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(24), torch.arange(33), indexing="ij")
    truth = torch.stack([(y - 12) ** 2 + (x - c) ** 2 < 60 for c in (12, 20)])
    features = torch.stack([truth, ~truth], 1) + 0.1 * torch.randn(2, 2, 24, 33, generator=g)
    return features, truth, truth.roll((2, -3), (1, 2))


def masks_of(given, mask):
    if given == "distance":
        return tsdf(mask, 14.0)
    return 0.1 + 0.8 * mask.float() if given == "probabilities" else 2 * mask.float() - 1


GIVEN = ["probabilities", "logits", "distance"]


@pytest.mark.parametrize("given", GIVEN)
def test_it_learns_to_refine_masks(scene, given):
    features, truth, mask = scene
    torch.manual_seed(0)
    refiner = ChanVeseRefiner(2, features=8, given=given)
    masks = masks_of(given, mask)
    optimizer = torch.optim.Adam(refiner.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = refiner.loss(refiner(masks, features), truth)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None for p in refiner.parameters())
    with torch.no_grad():
        refined = refiner(masks, features)
    before, after = ((part == truth).float().mean() for part in (mask, refined.mask))
    assert losses[-1] < losses[0]
    assert after > before + 0.02, (before, after)


@pytest.mark.parametrize("given", GIVEN)
def test_what_it_returns(scene, given):
    features, _, mask = scene
    refiner = ChanVeseRefiner(2, steps=4, features=2, given=given, learnt_features=False, hyperparameters="global")
    masks = masks_of(given, mask)
    refined = refiner(masks, features)
    phi = {"probabilities": 2 * masks - 1, "logits": torch.tanh(masks / 2), "distance": masks}[given]
    torch.testing.assert_close(refined.start, phi)
    torch.testing.assert_close(refined.phi, chan_vese_evolve(phi, features, *refined.numbers))
    assert len(refined.steps) == 5
    torch.testing.assert_close(refined.steps[-1], refined.phi, rtol=1e-4, atol=1e-5)
    if given == "distance":
        assert refined.logits is None
    else:
        logits = torch.logit(masks) if given == "probabilities" else masks
        torch.testing.assert_close(refined.logits, logits + 10 * (refined.phi - phi))
    assert (refined.mask == ((refined.phi if given == "distance" else refined.logits) > 0)).all()


def test_distances_are_taught_the_papers_loss_and_void_counts_for_nothing(scene):
    features, truth, mask = scene
    refiner = ChanVeseRefiner(2, features=4, given="distance")
    refined = refiner(tsdf(mask, 14.0), features)
    valid = torch.rand(2, 24, 33) < 0.7
    expected = TSDFLoss()(refined.phi, tsdf(truth, 14.0), truth, valid)
    torch.testing.assert_close(refiner.loss(refined, truth, valid), expected)
    torch.testing.assert_close(refiner.loss(refined, truth.float(), valid), expected)
    assert refiner.loss(refined, truth, torch.zeros_like(valid)) == 0
    unknown = torch.where(valid, truth.float(), torch.nan)
    assert refiner.loss(refined, unknown).isnan()
    assert refiner.loss(refined, unknown, valid).isfinite()


def test_masks_of_one_image_share_its_features_of_a_stride(scene):
    _, _, mask = scene
    refiner = ChanVeseRefiner(3, features=4, stride=4)
    shared = torch.rand(1, 3, 6, 9)
    together = refiner(masks_of("probabilities", mask), shared)
    apart = [refiner(masks_of("probabilities", mask[k : k + 1]), shared) for k in range(2)]
    torch.testing.assert_close(together.phi, torch.cat([each.phi for each in apart]))
    nothing = refiner(torch.zeros(0, 24, 33), shared)
    assert nothing.mask.shape == (0, 24, 33)
    refiner.loss(nothing, torch.zeros(0, 24, 33, dtype=torch.bool)).backward()


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_empty_and_full_masks_are_finite(scene, fill):
    features = scene[0].requires_grad_()
    masks = torch.full((2, 24, 33), fill, requires_grad=True)
    refiner = ChanVeseRefiner(2, features=4)
    refiner.loss(refiner(masks, features), torch.zeros(2, 24, 33, dtype=torch.bool)).backward()
    assert masks.grad.isfinite().all()
    assert features.grad.isfinite().all()


def test_half_precision(scene):
    features, truth, mask = scene
    refiner = ChanVeseRefiner(2, features=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = refiner.loss(refiner(masks_of("probabilities", mask).bfloat16(), features.bfloat16()), truth)
    loss.backward()
    assert loss.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):  # of the refiner's own weights
        half = ChanVeseRefiner(2, features=4).to(dtype)
        refined = half(masks_of("probabilities", mask).to(dtype), features.to(dtype))
        half.loss(refined, truth).backward()
        assert refined.phi.isfinite().all()


def test_a_saved_refiner_is_the_same_when_it_is_loaded(scene, tmp_path):
    features, _, mask = scene
    refiner = ChanVeseRefiner(2, steps=2, features=5, given="logits", gain=3.0, delta="derivative").eval()
    refiner.save(tmp_path / "refiner.pt")
    loaded = ChanVeseRefiner.load(tmp_path / "refiner.pt")
    masks = masks_of("logits", mask)
    torch.testing.assert_close(loaded(masks, features).logits, refiner(masks, features).logits)
    assert loaded.options == refiner.options
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"has no Chan-Vese refiner"):
        ChanVeseRefiner.load(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0},
        {"features": 0},
        {"channels": 0},
        {"stride": 0},
        {"gain": 0.0},
        {"truncation": float("nan")},
        {"given": "mask"},
        {"hyperparameters": "fixed"},
        {"delta": "sharp"},
        {"enlarge": 0},
        {"pooled": 0},
    ],
)
def test_wrong_options(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ChanVeseRefiner(**({"channels": 3} | option))


@pytest.mark.parametrize(
    ("masks", "features", "message"),
    [
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8), "masks M×H×W"),
        (torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 3, 8, 8), "floating masks"),
        (torch.zeros(1, 8, 8), torch.zeros(1, 4, 8, 8), "features M×3×8×8"),
        (torch.zeros(1, 8, 8), torch.zeros(1, 3, 4, 4), r"features M×3×8×8 \(stride 1\)"),
        (torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8), "must be a multiple of the number of features, 2, not 3"),
        (torch.full((1, 8, 8), 1.5), torch.zeros(1, 3, 8, 8), r"lie in \[0, 1\], not in \[1.5, 1.5\]: set given="),
        (torch.full((1, 8, 8), torch.nan), torch.zeros(1, 3, 8, 8), "lie in"),
    ],
)
def test_bad_input(masks, features, message):
    with pytest.raises(ValueError, match=message):
        ChanVeseRefiner(3)(masks, features)


@pytest.mark.parametrize("option", [{"enlarge": 2}, {"pooled": 7}])
def test_a_part_of_a_network_is_not_called_alone(option):
    with pytest.raises(ValueError, match="cannot be called: use its methods embed, numbers and evolve"):
        ChanVeseRefiner(3, **option)(torch.zeros(1, 8, 8), torch.zeros(1, 3, 8, 8))
