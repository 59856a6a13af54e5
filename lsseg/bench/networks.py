"""Benchmarks the methods: training steps of all, steps and costs of DMLS, and inference of LevelSet R-CNN."""

import statistics
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from lsseg.bench.core import partition
from lsseg.bench.harness import Benchmark, Case, in_turn
from lsseg.functional.instances import paste_masks
from lsseg.losses import CrossEntropyLoss
from lsseg.models import DFCN, DMLS, FCN, ChanVeseNet, LevelSetRCNN, SmpNet
from lsseg.tasks import ChanVeseTask, DMLSTask, LevelSetLossTask, SegmentationTask

# Zhang 2019, table VIII: frames per second on a Titan X, GFLOPs, million parameters.
ZHANG = {"DMLS": (6.53, 102.4, 34.0), "FCN-8s, vgg16": (16.24, 220.4, 134.5)}
# Homayounfar 2020, section 5: ms for an image of 1024×2048 on a GTX 1080 Ti.
HOMAYOUNFAR = {"plain": 145, "level_set": 182}
MASK_RCNN = {"target": "binary", "evolution": "none", "resolution": 28}


def _training_step(name: str, options: Any) -> Case:
    """Return a method's forward pass, losses and backward pass, without the optimiser, which is the same for all."""
    torch.manual_seed(0)
    images, classes, height, width = options.shape
    network: Any = partial(SmpNet, encoder_name=options.encoder)
    task: SegmentationTask
    if name.startswith("dmls"):
        task = DMLSTask(classes, network=partial(DMLS, network=network, steps=2, level_set=name == "dmls"))
    elif name in ("chan_vese", "convolution"):
        refined: Any = partial(ChanVeseNet, network=network, stride=2, features=32, refine=name)  # type: ignore[arg-type]
        task = ChanVeseTask(classes, network=refined)
    else:
        task = (LevelSetLossTask if name == "level_set" else SegmentationTask)(classes, network=network)
    task = task.to(options.device).train()
    coarse = torch.randn(images, classes, 6, 8)
    mask = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").argmax(1).to(options.device)
    batch = {"image": torch.rand(images, 3, height, width, device=options.device), "mask": mask}

    def step() -> None:
        task.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = task.losses(task.train_output(batch), mask)["loss"]
        torch.autograd.backward(loss)

    return step


def _dmls(options: Any, **settings: Any) -> DMLS:
    torch.manual_seed(0)
    network: Any = partial(DFCN, encoder_name=options.encoder)
    return DMLS(options.classes, network, **{"steps": options.steps, **settings}).to(options.device)


def _dmls_step(name: str, options: Any) -> Case:
    """Return the forward and backward pass of a batch of one image, with one cross-entropy for each step."""
    settings: dict[str, Any] = {
        "without": {"level_set": False},
        "one": {"steps": 1},
        "checkpointed": {"checkpoint": True},
    }
    net = _dmls(options, **settings.get(name, {})).train()
    image, regions = torch.rand(1, 3, *options.size).to(options.device), partition(options.classes, options.size, "cpu")
    regions = regions.to(options.device)
    # The target is a shifted partition, because the unshifted one leaves nothing to learn. The gradients would then be
    # so small that a CPU computes with them at a tenth of the speed.
    target, criterion = regions.argmax(1).roll((9, 13), (1, 2)), CrossEntropyLoss()
    # The partition of an untrained network does not look like a picture's, so the hook adds regions to its scores.
    net.network.register_forward_hook(lambda module, inputs, output: output._replace(logits=output.logits + regions))

    def step() -> None:
        net.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack([criterion(one.last, target) for one in net(image).steps]).sum())

    return step


def _dmls_costs(options: Any, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print and return frames per second, GFLOPs and million parameters at inference."""
    nets = {
        "DMLS": _dmls(options),
        "DMLS, one step": _dmls(options, steps=1),
        "FCN-8s, vgg16": FCN(options.classes).to(options.device),
    }
    image, costs = torch.rand(1, 3, *options.size, device=options.device), {}
    table = Table(title="inference: measured here, then the values of Zhang 2019, table VIII (Titan X)")
    for column in ("network", "fps", "GFLOPs", "parameters", "fps", "GFLOPs", "parameters"):
        table.add_column(column, justify="left" if column == "network" else "right")
    with torch.no_grad():
        times = in_turn(
            {name: partial(net.eval(), image) for name, net in nets.items()}, options.repeats, options.device
        )
        for name, net in nets.items():
            with FlopCounterMode(display=False) as counter:
                net(image)
            fps, gflops = 1 / statistics.median(times[name]), counter.get_total_flops() / 1e9
            millions = sum(p.numel() for p in net.parameters()) / 1e6
            costs[name] = {"fps": fps, "gflops": gflops, "parameters": millions}
            table.add_row(name, f"{fps:.2f}", f"{gflops:.1f}", f"{millions:.1f} M", *map(str, ZHANG.get(name, ())))
    Console(markup=False, highlight=False).print(table)
    return {"costs": costs}


def _inference(name: str, options: Any) -> Case:
    """Return the inference from an image to masks of its size.

    All detections are kept, so that both networks have equally many objects.
    """
    torch.manual_seed(0)
    settings: dict[str, Any] = MASK_RCNN if name == "plain" else {}
    shared: dict[str, Any] = {"score_threshold": 0.0, "detections": options.objects}
    net = LevelSetRCNN(options.classes, options.encoder, **shared, **settings).to(options.device).eval()
    image = torch.rand(3, *options.size, generator=torch.Generator().manual_seed(1)).to(options.device)

    def step() -> None:
        with torch.no_grad():
            found = net([image])[0]
            paste_masks(found.masks.final, found.boxes, (options.size[0], options.size[1]))

    return step


def _instance_costs(options: Any, seconds: dict[str, list[float]]) -> dict[str, Any]:
    paper = HOMAYOUNFAR["level_set"] / HOMAYOUNFAR["plain"]
    Console(markup=False).print(
        f"In the paper, Mask R-CNN takes {HOMAYOUNFAR['plain']} ms and LevelSet R-CNN {HOMAYOUNFAR['level_set']} ms "
        f"for an image of 1024×2048 (GTX 1080 Ti), {paper:.2f} times as long."
    )
    return {"costs": {name: {"ms": 1e3 * statistics.median(times)} for name, times in seconds.items()}}


BENCHMARKS = {
    "methods": Benchmark(
        about="a training step of every method compared with cross-entropy's, on one network",
        cases={
            "cross_entropy": "cross-entropy",
            "level_set": "cross-entropy + level set",
            "dmls_off": "DMLS, K = 2, without its layer",
            "dmls": "DMLS, K = 2",
            "convolution": "a convolution instead of the refiner",
            "chan_vese": "Chan–Vese refiner",
        },
        baseline="cross_entropy",
        make=_training_step,
        options={"shape": (1, 11, 320, 448), "encoder": "tu-tf_efficientnet_lite0", "precision": "32"},
        choices={"precision": ("32", "bf16")},
        on_gpu=("--shape", "8", "11", "320", "448", "--precision", "bf16"),
        title="training step, U-Net on {encoder}, {shape}, {precision} bits",
    ),
    "dmls": Benchmark(
        about="a training step of DMLS with and without its level sets, and its size compared with the paper's",
        cases={
            "one": "one step",
            "without": "K steps, without level sets",
            "all": "K steps",
            "checkpointed": "K steps, checkpointed",
        },
        baseline="one",
        make=_dmls_step,
        options={"classes": 19, "size": (512, 512), "steps": 4, "encoder": "resnet50"},
        least={"classes": 2, "size": 16},
        title="training step, K = {steps}, DFCN on {encoder}, C = {classes}, {size}",
        more=_dmls_costs,
    ),
    "instances": Benchmark(
        about="the inference of LevelSet R-CNN compared with Mask R-CNN's",
        cases={"plain": "Mask R-CNN", "level_set": "LevelSet R-CNN"},
        baseline="plain",
        make=_inference,
        options={"size": (1024, 2048), "encoder": "resnet50", "objects": 100, "classes": 8},
        least={"size": 64},
        title="inference, {encoder} with a feature pyramid, {size}, {objects} objects",
        repeats=5,
        more=_instance_costs,
    ),
}
