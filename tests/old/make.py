"""Notes what a version of the project makes of weights that are a function of their names: a file for each method.

Run it at the commit whose checkpoints later versions are to read: python tests/old/make.py FOLDER. A file holds the
resolved configuration of a run, the shape of every tensor of its checkpoint, and some of the numbers that it predicts.
"""

import sys
import zlib
from pathlib import Path

import torch
import yaml

HERE = Path(__file__).parent
WRAPPED = [
    "--model.network.network=SmpNet",
    "--model.network.network.architecture=unet",
    "--model.network.network.encoder_name=tu-test_resnet.r160_in1k",
    "--model.network.network.decoder={decoder_channels: [16, 16, 8, 8, 8]}",
]
METHODS = {
    "cross_entropy": ["--model=SegmentationTask"],
    "level_set": ["--model=LevelSetLossTask"],
    "dmls": ["--model=DMLSTask", "--model.network=DMLS", "--model.network.steps=2", *WRAPPED],
    "chan_vese": ["--model=ChanVeseTask", "--model.network=ChanVeseNet", "--model.network.features=6", *WRAPPED],
    "level_set_rcnn": [],
}


def weights(shapes):
    """Tensors by name, of given shapes, each a function of its name."""
    state = {}
    for name, shape in shapes.items():
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=g) * 0.2
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(7)
        if name.endswith((".std", "class_weights")):
            values = values.abs() + 0.3
        if name.endswith("log_temperature"):
            values = torch.tensor(-2.0)
        state[name] = values
    return state


def image():
    """B×3×H×W, the same everywhere."""
    x, y = torch.linspace(0, 1, 64), torch.linspace(0, 1, 48)[:, None]
    return torch.stack([x * y, (5 * x + y).sin() / 2 + 0.5, (x - 3 * y).cos() / 2 + 0.5])[None]


def predicted(task):
    """Numbers that a task predicts."""
    with torch.no_grad():
        if task.kind == "semantic":
            phi = task.phi(task.infer(image()))[0]
            return phi[:, 5::11, 7::13].flatten().tolist()
        net = task.network
        pyramid = net.pyramid(net.encoder.batch([image()[0]]))
        boxes = torch.tensor([[4.0, 6.0, 40.0, 30.0], [20.0, 10.0, 60.0, 44.0]])
        masks = net.final_masks(pyramid, 0, boxes, torch.tensor([0, 1])).final
        return masks[:, 5::31, 7::29].flatten().tolist()


def write(name, folder):
    """The file of one method."""
    from lsseg.cli import main
    from lsseg.load import load_run

    config = HERE.parent / "cli" / ("tiny_instances.yaml" if name == "level_set_rcnn" else "tiny.yaml")
    run = folder / name
    options = ["--trainer.max_steps=2", f"--trainer.default_root_dir={run}"]
    assert main(["fit", f"--config={config}", *METHODS[name], *options]) == 0
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    shapes = {key: tuple(value.shape) for key, value in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": weights(shapes)}, run / "last.ckpt")
    content = {
        "config": yaml.safe_load((run / "config.yaml").read_text()),
        "num_classes": checkpoint["num_classes"],
        "shapes": {key: list(shape) for key, shape in shapes.items()},
        "predicted": [round(x, 5) for x in predicted(load_run(run).task)],
    }
    (HERE / f"{name}.yaml").write_text(yaml.safe_dump(content, default_flow_style=None, width=110, sort_keys=False))


if __name__ == "__main__":
    for method in METHODS:
        write(method, Path(sys.argv[1]))
