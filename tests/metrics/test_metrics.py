import json
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from lsseg.data.loading import EvalSampler
from lsseg.functional import boundary_counts, class_iou, confusion_matrix, overlap_counts
from lsseg.metrics import BoundaryF1, Overlap, PerImage


def maps(images=5, classes=4, void=0.1, seed=0):
    g = torch.Generator().manual_seed(seed)
    prediction, target = torch.randint(0, classes, (2, images, 9, 13), generator=g)
    target[torch.rand(target.shape, generator=g) < void] = 255
    return prediction, target


def test_overlap_equals_torchmetrics():
    prediction, target = maps()
    metric = Overlap(4)
    for i in range(5):
        metric.update(prediction[i : i + 1], target[i : i + 1])
    scores = metric.compute()
    options = {"num_classes": 4, "ignore_index": 255}
    assert float(scores["miou"]) == pytest.approx(
        float(multiclass_jaccard_index(prediction, target, **options)), rel=1e-6
    )
    accuracy = multiclass_accuracy(prediction, target, average="micro", **options)
    assert float(scores["accuracy"]) == pytest.approx(float(accuracy), rel=1e-6)


def test_a_class_that_never_occurs_is_left_out_of_the_mean():
    prediction, target = maps(classes=3)
    scores = Overlap(4)(prediction, target)
    assert scores["iou"][3].isnan()
    assert float(scores["miou"]) == pytest.approx(float(scores["iou"][:3].mean()))
    target[0, 0, 0] = 3  # in the truth but never predicted: it counts, as 0
    assert float(Overlap(4)(prediction, target)["iou"][3]) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    prediction, target = maps(classes=21)
    expected = confusion_matrix(prediction, target, 21)
    assert torch.equal(confusion_matrix(prediction.to(dtype), target.to(dtype), 21), expected)
    counts = boundary_counts(prediction.to(dtype), target.to(dtype), 21, 1)
    assert torch.equal(counts, boundary_counts(prediction, target, 21, 1))


def test_all_void_has_no_score():
    prediction, target = maps(void=1.1)
    scores = Overlap(4)(prediction, target)
    assert scores["miou"].isnan()
    assert scores["accuracy"].isnan()


def test_counts_of_images_are_in_order_and_add_up():
    prediction, target = maps()
    metric, order = PerImage(4), [3, 0, 4, 1]
    for i in order:
        metric.update(prediction[i : i + 1], target[i : i + 1], torch.tensor([i]))
    metric.update(prediction[2:3], torch.full_like(target[2:3], 255), torch.tensor([-1]))  # padding
    counts = metric.compute()
    assert counts["index"].tolist() == sorted(order)
    assert counts["overlap"].shape == (4, 4, 3)
    assert counts["boundary"].shape == (4, 3, 4, 4)
    kept = sorted(order)
    assert torch.equal(counts["boundary"][:, 1], boundary_counts(prediction[kept], target[kept], 4, 2))
    confusion = confusion_matrix(prediction[kept], target[kept], 4)
    whole = Overlap(4)
    whole.update(prediction[kept], target[kept])
    assert torch.equal(whole.confmat, confusion.sum(0))
    assert torch.equal(counts["overlap"], overlap_counts(confusion))
    torch.testing.assert_close(class_iou(counts["overlap"].sum(0)), whole.compute()["iou"])


def score_share(rank, world, folder):
    """One process of two: scores its share of the images, one at a time, and rank 0 writes the results down."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    prediction, target = maps(images=7)
    metrics = {"overlap": Overlap(4), "boundary": BoundaryF1(4, 1), "images": PerImage(4)}
    for index in EvalSampler(len(target), rank, world):
        i = max(index, -1 - index)
        mask = target[i : i + 1] if index >= 0 else torch.full_like(target[:1], 255)
        metrics["overlap"].update(prediction[i : i + 1], mask)
        metrics["boundary"].update(prediction[i : i + 1], mask)
        metrics["images"].update(prediction[i : i + 1], mask, torch.tensor([max(index, -1)]))
    scores = {name: metric.compute() for name, metric in metrics.items()}
    if rank == 0:
        found = [scores["overlap"]["iou"], scores["boundary"], scores["images"]["overlap"]]
        (folder / "scores.json").write_text(json.dumps([part.tolist() for part in found]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_count_as_one(tmp_path):
    """Seven images on two ranks: uneven, so one rank is padded, and the scores are those of one process exactly."""
    fork = multiprocessing.get_context("fork").Process
    ranks = [fork(target=score_share, args=(rank, 2, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    prediction, target = maps(images=7)
    overlap, contours, single = Overlap(4), BoundaryF1(4, 1), PerImage(4)
    overlap.update(prediction, target)
    contours.update(prediction, target)
    single.update(prediction, target, torch.arange(7))
    expected = [overlap.compute()["iou"], contours.compute(), single.compute()["overlap"]]
    assert json.loads((tmp_path / "scores.json").read_text()) == [part.tolist() for part in expected]
