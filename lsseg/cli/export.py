"""Runs ``lsseg export``, which writes a trained network as one file for inference without its configuration."""

import importlib.util
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lsseg.arguments import Arguments
from lsseg.errors import InputError
from lsseg.load import load_run, run_config

# The file's scores may differ from the network's by this number times the largest score (times 1 if that is larger).
TOLERANCE = 1e-4


class Scores(nn.Module):
    """Wraps a network for export: B×3×H×W images in [0, 1] → B×C×H×W scores."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the final scores."""
        scores: Tensor = self.network(image).logits
        return scores


def main(argv: list[str]) -> int:
    """Write the file and return the exit status."""
    parser = Arguments(
        prog="lsseg export",
        description="Write a trained network as one file, which turns B×3×H×W images in [0, 1] into B×C×H×W scores. "
        "FILE.onnx runs without torch. FILE.pt2, of torch.export, keeps this project's operators: import "
        "lsseg.functional before torch.export.load. The file is kept only if its scores agree with the network's.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("file", type=Path, help="the file to write: FILE.onnx or FILE.pt2")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the images that the file accepts (default: those of the run's training crops)",
    )
    parser.add_argument("--batch", type=int, default=1, help="fixed number of images per batch (default: 1)")
    parser.add_argument("--checkpoint", default="last.ckpt", help="file in the run's folder (default: last.ckpt)")
    options = parser.parse_args(argv[1:])
    height, width = options.size or size_of(options.run, options.checkpoint)
    error = export(options.run, options.file, (options.batch, height, width), options.checkpoint)
    size = options.file.stat().st_size / 1e6
    made = f"{options.file}: {size:.1f} MB, for images of {height}×{width}"
    print(f"{made}; its scores differ by at most {error:.1g} from the network's")
    return 0


def size_of(run: Path, checkpoint: str = "last.ckpt") -> tuple[int, int]:
    """Return the height and width of a run's resized images, or else of its training crops or its generated scenes.

    Args:
        run: The run folder.
        checkpoint: A file that the run must have.

    Raises:
        InputError: If the run was trained on images of their own sizes.
    """
    data = run_config(run, checkpoint)["data"].get("init_args") or {}
    # Prediction resizes images, too, so `resize` comes first. A crop has a size that the network knows. The key `size`
    # belongs to generated scenes.
    for key in ("resize", "crop_size", "size"):
        size = data.get(key)
        if isinstance(size, list) and len(size) == 2:
            return size[0], size[1]
    raise InputError(
        f"{run} has no fixed image size, because it has neither data.resize nor data.crop_size: set --size"
    )


def export(run: Path, file: Path, shape: tuple[int, int, int], checkpoint: str = "last.ckpt") -> float:
    """Write ``file`` for B×3×H×W images.

    Args:
        run: The run folder.
        file: The file to write, whose name ends in ``.onnx`` or ``.pt2``.
        shape: B, H, W.
        checkpoint: Name of the checkpoint in the run folder.

    Returns:
        The largest difference between the scores of the file and of the network, on random images.

    Raises:
        InputError: If an argument is wrong, the network cannot be written in this form, or the file's scores differ.
    """
    if file.suffix not in (".onnx", ".pt2"):
        raise InputError(f"{file} must end in .onnx or .pt2")
    if not file.parent.is_dir():
        raise InputError(f"{file.parent} is not a folder")
    if file.is_dir():
        raise InputError(f"{file} is a folder: give a file")
    if min(shape) < 1:
        raise InputError(f"--batch and --size must be at least 1, not {shape}")
    task, _ = load_run(run, checkpoint)
    if task.kind == "instances":
        raise InputError(
            f"{run} finds objects, and their number differs by image: only networks for label maps can be exported"
        )
    image = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(0))
    network = Scores(task.network).eval()
    with torch.no_grad():
        expected = network(image)
        try:
            program = torch.export.export(network, (image,))
        except (RuntimeError, TypeError, ValueError, AssertionError) as refusal:
            reason = (str(refusal).strip() or type(refusal).__name__).splitlines()[0]
            raise InputError(f"torch.export cannot take {type(task.network).__name__}: {reason}") from refusal
    write = _write_onnx if file.suffix == ".onnx" else _write_pt2
    temporary = file.with_name(f"part-{file.name}")
    try:
        found = write(program, temporary, image)
        error = float((found - expected).abs().max())
        if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise InputError(f"{file} is not kept: its scores differ by {error:.2g} from the network's")
        temporary.replace(file)
    except (OSError, RuntimeError) as failure:  # a full disk causes either, without the file's name
        if isinstance(failure, RuntimeError) and "inline_container" not in str(failure):
            raise
        reason = getattr(failure, "strerror", None) or "cannot write the file (is the disk full?)"
        raise OSError(getattr(failure, "errno", None), reason, str(file)) from failure
    finally:
        temporary.unlink(missing_ok=True)
    return error


def _write_pt2(program: torch.export.ExportedProgram, file: Path, image: Tensor) -> Tensor:
    """Write the file, read it again, and return its scores."""
    content = io.BytesIO()
    torch.export.save(program, content)
    file.write_bytes(content.getvalue())  # On a full disk torch would end the process, where this raises an error.
    with torch.no_grad():
        scores: Tensor = torch.export.load(file).module()(image)
    return scores


def _write_onnx(program: torch.export.ExportedProgram, file: Path, image: Tensor) -> Tensor:
    """Write the file and return the scores that ONNX Runtime computes with it."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    targets = {str(node.target) for graph in graphs for node in graph.nodes}
    own = {target for target in targets if target.startswith("lsseg.")}
    if own:
        raise InputError(f"ONNX does not know the level-set evolution ({', '.join(sorted(own))}): write a .pt2 file")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install -e '.[onnx]'")
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of torch's exporter
        torch.onnx.export(
            program,
            f=str(file),
            input_names=["image"],
            output_names=["scores"],
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
