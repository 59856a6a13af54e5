from collections import OrderedDict
from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from lsseg.data import SyntheticInstances
from lsseg.errors import InputError
from lsseg.functional import blocks, chan_vese_evolve
from lsseg.models import LevelSetRCNN
from lsseg.models.fpn import BoxPooler
from lsseg.tasks import LevelSetRCNNTask
from lsseg.tasks.inference import detect_augmented

SMALL = {
    "encoder_name": "tu-test_resnet.r160_in1k",
    "batch_norm": "trained",
    "features": 6,
    "width": 16,
    "mask_width": 16,
    "box_width": 32,
    "anchor_sizes": (16, 24, 40, 64, 96),
    "proposals": 40,
    "rpn_samples": 16,
    "box_samples": 16,
}
SWITCHES = {
    "LevelSet R-CNN": {},
    "Mask R-CNN": {"target": "binary", "evolution": "none", "resolution": 28},
    "Mask R-CNN at 112": {"target": "binary", "evolution": "none"},
    "TSDF target only": {"evolution": "none"},
    "DELSE": {"evolution": "delse", "hyperparameters": "fixed"},
    "DELSE with the head": {"evolution": "delse"},
    "one set": {"hyperparameters": "global"},
    "detached": {"detach_init": True},
    "coarse": {"resolution": 56, "steps": 1},
    "control": {"evolution": "convolution"},
    "fine features": {"feature_resolution": 112},
}


def net(**options):
    torch.manual_seed(0)
    return LevelSetRCNN(6, **{**SMALL, **options})


@pytest.fixture(scope="module")
def batch():
    data = SyntheticInstances(4, 4, 4, size=(64, 80), batch_size=2, num_workers=0)
    samples = data.samples(data.source("train"), training=True)
    return data.collate([samples[0], samples[1]])


def without_objects(instances):
    return [{k: v * 0 if k == "layers" else v[:0] for k, v in found.items()} for found in instances]


def task(**options):
    return LevelSetRCNNTask(6, network=partial(LevelSetRCNN, **{**SMALL, **options}))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("objects", ["both", "one image", "none"])
def test_every_parameter_has_a_gradient_whatever_is_in_the_images(name, objects, batch):
    torch.manual_seed(0)
    learner = task(**SWITCHES[name])
    instances = batch["instances"]
    if objects != "both":
        instances = [
            *without_objects(instances[:1]),
            *(instances[1:] if objects == "one image" else without_objects(instances[1:])),
        ]
    output = learner.network.train_output(batch["image"], instances)
    terms = {**output.losses, **learner.losses(output.masks, output.target)}
    torch.stack(list(terms.values())).sum().backward()
    assert [n for n, p in learner.network.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in learner.network.parameters())
    if objects == "none":
        assert len(output.masks.final) == 0
        assert all(float(v.detach()) == 0 for name, v in terms.items() if name.startswith("mask"))


@pytest.mark.parametrize("name", SWITCHES)
def test_detections_have_masks_on_their_grids(name, batch):
    made = net(**SWITCHES[name], score_threshold=0.0, detections=9).eval()
    with torch.no_grad():
        found = made(batch["image"])
    resolution = SWITCHES[name].get("resolution", 112)
    for own in found:
        assert own.boxes.shape == (9, 4)
        assert own.masks.final.shape == own.masks.initial.shape == (9, resolution, resolution)
        assert own.masks.final.isfinite().all()
        assert bool(own.scores.diff().le(0).all())
        assert set(own.labels.tolist()) <= set(range(6))
    assert torch.equal(own.masks.final, own.masks.initial) == (made.evolution == "none")


def test_no_detection_at_all(batch):
    made = net(score_threshold=0.99).eval()
    with torch.no_grad():
        found = made(batch["image"])
    assert [len(own.scores) for own in found] == [0, 0]
    assert found[0].masks.final.shape == (0, 112, 112)


def test_a_few_boxes_at_a_time_are_as_good_as_all(batch, monkeypatch):
    made = net(score_threshold=0.0, detections=20).eval()
    with torch.no_grad():
        few = made(batch["image"])
        monkeypatch.setattr(blocks, "in_cache", lambda device: False)
        every = made(batch["image"])
    for one, other in zip(few, every, strict=True):
        torch.testing.assert_close(one.masks.final, other.masks.final, rtol=1e-3, atol=1e-4)


def test_history_ends_in_the_final_masks(batch):
    made = net().eval()
    pyramid = made.pyramid(made.encoder.batch(batch["image"]))
    boxes = [found["boxes"] for found in batch["instances"]]
    masks = made.masks(pyramid, boxes, [found["labels"] for found in batch["instances"]])
    history = made.history(masks)
    assert len(history) == 4
    torch.testing.assert_close(history[0], masks.initial)
    torch.testing.assert_close(history[-1], masks.final, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chan_vese_evolve(masks.initial, masks.features, *masks.numbers, stride=4), masks.final)


def test_crowds_are_not_learnt(batch):
    torch.manual_seed(0)
    instances = [{**found, "crowd": torch.ones_like(found["crowd"])} for found in batch["instances"]]
    assert len(net().train_output(batch["image"], instances).masks.final) == 0


def test_the_target_is_the_object_of_the_box(batch):
    """Where a sampled box is the true one, its target is that object's crop."""
    output = net().train_output(batch["image"], batch["instances"])
    assert output.target.shape == output.masks.final.shape
    assert float(output.target.min()) >= 0
    assert float(output.target.max()) <= 1
    assert float(output.target.flatten(1).amax(1).min()) > 0.4  # every positive box holds its object


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning's own use of torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")  # as it should be
def test_frozen_batch_norm_stays_as_it_is_in_a_fit(tmp_path):
    torch.manual_seed(0)
    learner = task(batch_norm="frozen")
    norms = [m for m in learner.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [torch.cat([n.running_mean, n.weight]).clone() for n in norms]
    data = SyntheticInstances(4, 2, 2, size=(64, 80), batch_size=2, num_workers=0)
    trainer = pl.Trainer(
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    with pytest.warns(UserWarning, match="batch_norm is frozen, but its statistics still have their initial values"):
        trainer.fit(learner, data)
    assert norms
    for norm, old in zip(norms, before, strict=True):
        assert not norm.training
        torch.testing.assert_close(torch.cat([norm.running_mean, norm.weight]), old, rtol=0, atol=0)
    learner.train()
    assert not any(norm.training for norm in norms)


def test_boxes_keep_their_precision_under_bfloat16(batch):
    made = net().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = made.train_output(batch["image"], batch["instances"])
        pyramid = made.pyramid(made.encoder.batch(batch["image"]))
        proposals, _ = made.rpn.eval()(made.encoder.batch(batch["image"]), pyramid.levels)
        found = made.eval()(batch["image"])
    assert {level.dtype for level in pyramid.levels.values()} == {torch.float32}
    assert proposals[0].dtype == found[0].boxes.dtype == found[0].scores.dtype == torch.float32
    assert not torch.equal(proposals[0], proposals[0].bfloat16().float())
    assert all(bool(value.isfinite()) for value in output.losses.values())
    assert output.masks.final.dtype == torch.float32


def test_pooling_reads_where_the_box_is():
    """Of a map that holds the place of each cell, cells of boxes read their own place."""
    strides = [4, 8, 16, 32]
    levels = OrderedDict()
    for stride in strides:
        x = (torch.arange(512 // stride) + 0.5) * stride
        levels[str(stride)] = torch.stack(torch.meshgrid(x, x, indexing="ij"))[None]
    boxes = torch.tensor([[100.0, 50.0, 121.0, 92.0], [33.3, 40.7, 240.1, 300.9], [20.0, 20.0, 490.0, 495.0]])
    pooled = BoxPooler(strides, 7)(levels, [boxes[:2], boxes[2:]][:1] + [boxes[2:]][:0] + [boxes[:0]])
    for box, cells in zip(boxes, pooled, strict=False):
        size = (box[2:] - box[:2]) / 7
        centre = box[:2] + (torch.arange(7)[:, None] + 0.5) * size
        torch.testing.assert_close(cells[0, :, 0], centre[:, 1], rtol=0, atol=1e-2)
        torch.testing.assert_close(cells[1, 0], centre[:, 0], rtol=0, atol=1e-2)


def test_flipped_views_are_brought_back(batch):
    """With a network whose masks are those of the image mirrored, flipping changes nothing but the order of sums."""
    made = net(score_threshold=0.0, detections=12).eval()
    image = batch["image"][0][:, :64, :64]
    with torch.no_grad():
        plain = detect_augmented(made, image, False, (1.0,))
        direct = made([image])[0]
        both = detect_augmented(made, image, True, (1.0,))
        mirrored = detect_augmented(made, image.flip(2), True, (1.0,))
        scaled = detect_augmented(made, image, True, (1.0, 1.5))
    torch.testing.assert_close(plain.boxes, direct.boxes)
    torch.testing.assert_close(plain.masks.final, direct.masks.final)
    torch.testing.assert_close(both.scores, mirrored.scores)
    torch.testing.assert_close(both.boxes[:, 0], 64 - mirrored.boxes[:, 2], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(both.masks.final, mirrored.masks.final.flip(2), rtol=1e-3, atol=1e-3)
    assert len(scaled.scores) <= 12
    assert float(scaled.boxes.max()) <= 64.001


def test_the_control_is_a_weighted_sum_of_the_features_and_phi(batch):
    made = net(evolution="convolution", features=32).eval()
    assert sum(p.numel() for p in made.block.parameters()) == 33 + 1
    assert not any("hyperparameters" in name or "pooled_head" in name for name, _ in made.named_parameters())
    torch.nn.init.normal_(made.block.weight)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 70.0, 60.0]])
    masks = made.final_masks(made.pyramid(made.encoder.batch(batch["image"][:1])), 0, boxes, torch.tensor([0, 1]))
    fine = made.pool_fine(made.pyramid(made.encoder.batch(batch["image"][:1])).thin, [boxes])
    features = torch.nn.functional.interpolate(made.feature_head(fine), (112, 112), mode="bilinear")
    weight = made.block.weight[0, :, 0, 0]
    change = torch.einsum("d,ndhw->nhw", weight[:32], features) + weight[32] * masks.initial + made.block.bias
    torch.testing.assert_close(masks.final - masks.initial, change, rtol=1e-3, atol=1e-4)


def test_features_at_the_masks_resolution(batch):
    made = net(feature_resolution=112).eval()
    pyramid = made.pyramid(made.encoder.batch(batch["image"][:1]))
    masks = made.masks(pyramid, [torch.tensor([[4.0, 6.0, 40.0, 50.0]])], [torch.tensor([0])])
    assert masks.features.shape == (1, 6, 112, 112)
    torch.testing.assert_close(made.history(masks)[-1], masks.final, rtol=1e-4, atol=1e-4)


def test_distances_are_taken_on_fine_cells_and_averaged():
    """On 28×28 cells a circle that is cut at a half first is off; averaged distances are not."""
    made = task(resolution=28)
    assert made.network.target_resolution == 112
    place = torch.arange(112) + 0.5
    cover = (torch.hypot(place - 53.3, place[:, None] - 57.1) < 31.7).float()[None]
    made.truncation = 3.5
    phi, mask = made.distances(cover, torch.zeros(1, 28, 28))
    cells = (torch.arange(28) + 0.5) * 4
    exact = ((31.7 - torch.hypot(cells - 53.3, cells[:, None] - 57.1)) / 14).clamp(-1, 1)
    # Averaging a cell rounds the corner where the distance is clipped.
    assert (phi[0] - exact).abs().mean() < 0.01
    coarse = made.distances(torch.nn.functional.avg_pool2d(cover, 4), torch.zeros(1, 28, 28))[0]
    assert (coarse[0] - exact).abs().mean() > 2 * (phi[0] - exact).abs().mean()
    assert torch.equal(mask, phi > 0)
    assert made.distances(cover[:0], torch.zeros(0, 28, 28))[0].shape == (0, 28, 28)


def test_one_mask_loss_may_weigh_what_two_do():
    for options, weight in (({"target": "binary", "resolution": 28}, 6.0), ({}, 6.0)):
        made = LevelSetRCNNTask(6, partial(LevelSetRCNN, **SMALL, evolution="none", **options), full_weight=True)
        assert made.initial_weight == weight
    assert LevelSetRCNNTask(6, partial(LevelSetRCNN, **SMALL), full_weight=True).initial_weight == 1


def test_wrong_options_are_named():
    for options, match in (
        ({"feature_resolution": 112, "resolution": 56}, "feature_resolution must be at most resolution 56"),
        ({"feature_resolution": 30}, "feature_resolution must be 28, 56 or 112"),
        ({"evolution": "snake"}, "evolution"),
        ({"target": "binary"}, "needs target tsdf"),
        ({"resolution": 100}, "resolution"),
        ({"steps": 0}, "steps"),
        ({"hyperparameters": "fixed"}, "hyperparameters must be adaptive or global with evolution chan_vese"),
        ({"anchor_sizes": (8, 16)}, "anchor_sizes must be 5 positive lengths"),
        ({"batch_norm": "warm"}, "batch_norm"),
        ({"score_threshold": 1.0}, "score_threshold"),
        ({"encoder_name": "resnet1"}, "encoder_name"),
    ):
        with pytest.raises(InputError, match=match):
            net(**options)
    with pytest.raises(InputError, match="level_set_weight needs a binary"):
        LevelSetRCNNTask(6, network=partial(LevelSetRCNN, **SMALL), level_set_weight=0.5)
    with pytest.raises(InputError, match="edge_losses"):
        LevelSetRCNNTask(6, network=partial(LevelSetRCNN, **SMALL), edge_losses=True)
    with pytest.raises(InputError, match="test_scales"):
        LevelSetRCNNTask(6, network=partial(LevelSetRCNN, **SMALL), test_scales=())
