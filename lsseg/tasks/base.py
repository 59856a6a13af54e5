"""The base of every task: optimiser, checkpoints, and what a user's mistake should say."""

import math
import time
import warnings
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lsseg.data.module import Kind
from lsseg.errors import InputError
from lsseg.losses.pixel_mean import mean_over_processes
from lsseg.models.refiner_heads import Numbers
from lsseg.models.state import steps_of
from lsseg.tasks.optimizer import Recipe
from lsseg.tasks.start import advice, matched_task_state, refuse_other_classes, refuse_other_optimizer, start_from


class Task(pl.LightningModule):
    """A network and how it is optimised.

    Args:
        num_classes: C.
        network: The network.
        recipe: The optimiser's.
        start: A checkpoint of another run whose weights the network starts from, as far as they fit.
    """

    kind: ClassVar[Kind]  # of the data
    monitor: ClassVar[str]  # the validation score by which the best checkpoint is chosen
    network: nn.Module

    def __init__(self, num_classes: int, network: nn.Module, recipe: Recipe, start: str | None = None) -> None:
        super().__init__()
        if start is not None:
            start_from(network, start)
        self.num_classes = num_classes
        self.network = network
        self.recipe = recipe
        self.trained_steps = 0
        self._losses: dict[str, Tensor] = {}  # sums since they were last looked at
        self._noted_from = 0

    def configure_optimizers(self) -> Any:
        """The recipe that all methods share."""
        steps = self.trainer.estimated_stepping_batches
        return self.recipe.build(self, steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the classes, to be compared with the data's when it is loaded; keep no spoilt weights."""
        self.refuse_nonfinite()
        checkpoint["num_classes"] = self.num_classes
        if self.trainer.datamodule is not None:
            checkpoint["class_names"] = list(self.class_names())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes or of another network, in one line; note how long it was trained."""
        self.trained_steps = checkpoint["global_step"]
        classes = checkpoint.get("num_classes")
        if classes is not None and classes != self.num_classes:
            raise InputError(f"the checkpoint has {classes} classes, but the data has {self.num_classes}")
        if self._trainer is not None and self.trainer.datamodule is not None:
            refuse_other_classes(checkpoint, self.class_names())
        steps, here = steps_of(checkpoint["state_dict"]), steps_of(self.network.state_dict())
        if steps != here:
            warnings.warn(
                f"the checkpoint has batch-norm statistics of {steps} steps, this network of {here}: a step without "
                "its own takes those of the last one before it",
                stacklevel=2,
            )
        theirs = checkpoint["state_dict"] = matched_task_state(checkpoint["state_dict"], self.network)
        ours = self.state_dict()
        for key in sorted(theirs.keys() - ours.keys()):
            raise InputError(f"the checkpoint is of another network: this configuration has no {key}{advice(key)}")
        for key in sorted(ours.keys() - theirs.keys()):
            raise InputError(f"the checkpoint is of another network: the checkpoint has no {key}")
        for key in sorted(ours):
            if theirs[key].shape != ours[key].shape:
                shapes = f"{tuple(theirs[key].shape)} in the checkpoint, {tuple(ours[key].shape)} here"
                raise InputError(f"the checkpoint is of another network: {key} is {shapes}")
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self.refuse_other_training(checkpoint)

    def refuse_other_training(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with a training whose optimiser, or its recipe, is another one."""
        refuse_other_optimizer(checkpoint, self.recipe, [len(group["params"]) for group in self.recipe.groups(self)])

    def refuse_nonfinite(self) -> None:
        """Raise ``InputError`` where a training loss since the last call was no number, naming its terms."""
        if not self._losses:
            return
        sums = torch.stack(list(self._losses.values())).tolist()
        wrong = [name for name, value in zip(self._losses, sums, strict=True) if not math.isfinite(value)]
        self._losses = {}
        if wrong:
            named = [name for name in wrong if name != "loss"] or wrong
            first, last = self._noted_from, self.global_step
            when = f"step {last}" if first == last else f"between the steps {first} and {last}"
            raise InputError(
                f"{when}: the training loss is not finite (in {', '.join(named)}); "
                "lower model.lr, or clip with trainer.gradient_clip_val"
            )

    def log_losses(self, terms: dict[str, Tensor], images: int) -> None:
        """Log all terms, as means over the processes; refuse a training loss that is no number.

        A GPU is not waited for at every step: there the sums of the losses are looked at when they are logged.
        """
        values = mean_over_processes(torch.stack([value.detach().float() for value in terms.values()]))
        means = dict(zip(terms, values, strict=True))
        if not self._losses:
            self._noted_from = self.global_step
        self._losses = {name: value + self._losses.get(name, 0) for name, value in means.items()}
        if self.device.type == "cpu" or self._logs_now():
            self.refuse_nonfinite()  # of all processes: each says so, and none waits for another
        for name, value in means.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=images)

    def _logs_now(self) -> bool:
        return self._trainer is not None and (self.global_step + 1) % self.trainer.log_every_n_steps == 0

    def on_train_end(self) -> None:
        """Refuse a loss of the last steps that was no number."""
        self.refuse_nonfinite()

    def log_scales(self) -> None:
        """Log the network's learnt scales, such as the gain of refined scores."""
        for module in self.network.modules():
            for name in getattr(module, "rates", ()):
                logarithm = getattr(module, name, None)
                if logarithm is not None:
                    self.log(f"train/{name.removeprefix('log_')}", logarithm.detach().exp())

    def clock(self) -> float:
        """Seconds, once the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def class_names(self) -> tuple[str, ...]:
        """Names of the data's classes; numbers where there is no data."""
        data = self.trainer.datamodule
        return data.class_names if data is not None else tuple(str(label) for label in range(self.num_classes))


class EvolvingObject(NamedTuple):
    """One object (or class) of an image and how its level set moves.

    Attributes:
        name: What to call it.
        box: The object's part of the image: left, top, right, bottom edge in pixels.
        phi: φ⁰ and φ after every iteration, each R×S on a grid over the box.
        features: F, D×R×S, or on a coarser grid; None of an evolution that has none.
        numbers: The object's hyperparameters, as for one object; None where they are set by hand.
    """

    name: str
    box: tuple[float, float, float, float]
    phi: list[Tensor]
    features: Tensor | None
    numbers: Numbers | None
