"""One process of two: scores its share of seven images, one at a time, and rank 0 writes the results down."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lsseg.data.loading import EvalSampler
from lsseg.metrics import BoundaryF1, Overlap, PerImage


def main(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    prediction, target = torch.load(folder / "maps.pt")
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


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
