"""Defines the base of every task: the optimiser's recipe, the checks of checkpoints, and the logs of losses."""

import math
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lsseg.data.module import Kind
from lsseg.errors import ArgumentError, InputError, require
from lsseg.losses.cross_entropy import mean_over_processes
from lsseg.models.heads import Numbers
from lsseg.models.state import steps_of
from lsseg.tasks.start import advice, matched_task_state, refuse_changes, refuse_other_classes, start_from


class Schedule(LambdaLR):
    """Sets the learning rate from the step and the total number of steps, and keeps only the step in checkpoints.

    A run that is resumed with more steps therefore has the rates of the longer training.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the step, which is the whole state."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step from a state, ignore the rest, and set the learning rates of that step.

        Args:
            state_dict: State of this class or, from older versions, of one of torch's schedules or a chain of them.
        """
        self.last_epoch = state_dict.get("_schedulers", [state_dict])[-1]["last_epoch"]
        rates = [rate * factor(self.last_epoch) for rate, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        self._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@dataclass
class Recipe:
    """Describes the optimiser: SGD with momentum or AdamW, weight decay, and how the learning rate falls.

    The "poly" rate of Kim 2019 is lr · (1 - step/steps)^power. With milestones, as in Homayounfar 2020 and in Zhang
    2019 (after 20 of 40 epochs), the rate starts at lr and is divided by 10 at each milestone.

    Args:
        name: ``sgd`` or ``adamw``.
        lr: Learning rate at the first step.
        momentum: Momentum of SGD; AdamW does not use it.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        poly_power: Exponent of the decay; 0 keeps the rate constant.
        new_layers: Factor of the rate for layers outside the encoder (a VGG's fully connected layers count as encoder).
        milestones: Shares of the training after which the rate is divided by 10; null uses the "poly" rate instead.
        warmup: Share of the training, at its start, in which the rate rises linearly to its full value.
        scale_lr: Learning rate at the first step of learnt scales, such as the gain of refined scores. A module names
            its scales in ``rates``. They have no weight decay, because they are logarithms: 0 stands for a scale of 1.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    poly_power: float = 0.9
    new_layers: float = 1.0
    milestones: list[float] | None = None
    warmup: float = 0.0
    scale_lr: float = 0.01

    def __post_init__(self) -> None:
        """Raise ``ArgumentError`` for a value out of range."""
        for key in ("lr", "weight_decay", "poly_power", "new_layers", "scale_lr"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must not be negative")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "must lie in [0, 1)")
        require(0 <= self.warmup < 1, "lr_warmup", self.warmup, "must lie in [0, 1)")
        shares = self.milestones or []
        if shares != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
            raise ArgumentError(
                "lr_milestones must be increasing shares of the training in (0, 1), such as 0.5 for halfway, "
                f"not {shares}"
            )

    def build(self, module: nn.Module, steps: float) -> dict[str, Any]:
        """Return the optimiser and the schedule in the form that Lightning takes.

        Args:
            module: Module whose parameters are optimised.
            steps: Optimiser steps of the whole training; 0 if nothing is trained.

        Raises:
            InputError: If the training has no last step, which the rate depends on.
        """
        if not math.isfinite(steps):
            raise InputError(
                "set trainer.max_steps or trainer.max_epochs, because the learning rate falls to 0 at the last step"
            )
        optimizer: torch.optim.Optimizer
        groups = self.groups(module)
        if self.name == "sgd":
            optimizer = torch.optim.SGD(groups, self.lr, self.momentum, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, self.lr, weight_decay=self.weight_decay)
        schedule = Schedule(optimizer, partial(self.factor, steps=max(1, int(steps))))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate at a step of a training of ``steps`` steps."""
        if self.milestones is None:
            factor = max(0.0, 1 - step / steps) ** self.poly_power
        else:
            factor = 0.1 ** sum(step >= round(share * steps) for share in self.milestones)
        rising = round(self.warmup * steps)
        return factor * min(1.0, (step + 1) / (rising + 1)) if rising else factor

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Group the parameters by learning rate and weight decay, in the form that torch's optimisers take."""
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        old, scales = {name for name in parameters if ".encoder." in name}, set()
        for place, net in module.named_modules():
            for part in getattr(net, "pretrained_parts", ()):
                old |= {name for name in parameters if name.startswith(f"{place}.{part}.")}
            scales |= {f"{place}.{name}".lstrip(".") for name in getattr(net, "rates", ())} & parameters.keys()
        if self.new_layers == 1:
            old = set(parameters)
        groups: list[dict[str, Any]] = [{"params": [p for name, p in parameters.items() if name in old - scales]}]
        new = [p for name, p in parameters.items() if name not in old | scales]
        if self.new_layers != 1:
            groups.append({"params": new, "lr": self.lr * self.new_layers})
        if scales:
            own = [parameters[name] for name in sorted(scales)]
            groups.append({"params": own, "lr": self.scale_lr, "weight_decay": 0.0})
        return groups


def refuse_other_optimizer(checkpoint: dict[str, Any], recipe: Recipe, sizes: list[int]) -> None:
    """Compare the state of the optimiser in a checkpoint with the recipe of the run that resumes from it.

    Args:
        checkpoint: Content of the checkpoint, as it was saved.
        recipe: The recipe of this run.
        sizes: Number of parameters in each group of this run's optimiser.

    Raises:
        InputError: If the state would replace values of the recipe, or does not fit the optimiser.
    """
    for state in checkpoint.get("optimizer_states", ()):
        groups = state["param_groups"]
        found = {"optimizer": "adamw" if "betas" in groups[0] else "sgd", "lr": groups[0].get("initial_lr")}
        found |= {key: groups[0].get(key) for key in ("momentum", "weight_decay")}
        ours = {"optimizer": recipe.name, "lr": recipe.lr, "weight_decay": recipe.weight_decay}
        if found["optimizer"] == recipe.name == "sgd":
            ours["momentum"] = recipe.momentum
        refuse_changes([(f"model.{key}", found[key], x) for key, x in ours.items() if found[key] not in (None, x)])
        if [len(group["params"]) for group in groups] != sizes:
            raise InputError(
                "the checkpoint's training cannot be continued, because its optimiser has other groups of parameters "
                "(from another version or another model.new_layers): start a new run from it with model.start"
            )


class Task(pl.LightningModule):
    """Joins a network with its optimiser, checkpoints and logs.

    Args:
        num_classes: Number of classes, C.
        network: The network.
        recipe: The recipe of the optimiser.
        start: A checkpoint of another run. The network starts from those of its weights that fit.
    """

    kind: ClassVar[Kind]  # kind of data
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
        self.allow_zero_length_dataloader_with_multiple_devices = True  # `predict` may get fewer images than processes
        self._losses: dict[str, Tensor] = {}  # sums since the last check
        self._noted_from = 0

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule of the recipe."""
        steps = self.trainer.estimated_stepping_batches
        return self.recipe.build(self, steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save after a loss that was not finite; add the classes, which are checked when it is loaded."""
        self.refuse_nonfinite()
        checkpoint["num_classes"] = self.num_classes
        if self.trainer.datamodule is not None:
            checkpoint["class_names"] = list(self.class_names())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rename a checkpoint's tensors for this network, and note the number of steps that it was trained for.

        Raises:
            InputError: If the checkpoint is of other classes or another network or, in training, another optimiser.
        """
        self.trained_steps = checkpoint.get("global_step", 0)
        classes = checkpoint.get("num_classes")
        if classes is not None and classes != self.num_classes:
            raise InputError(f"the checkpoint has {classes} classes, but the data has {self.num_classes}")
        if self._trainer is not None and self.trainer.datamodule is not None:
            refuse_other_classes(checkpoint, self.class_names())
        steps, here = steps_of(checkpoint["state_dict"]), steps_of(self.network.state_dict())
        if steps != here:
            warnings.warn(
                f"the checkpoint has batch-norm statistics of {steps} steps, but this network has {here}: a step "
                "without its own statistics uses those of the last step before it",
                stacklevel=2,
            )
        theirs = checkpoint["state_dict"] = matched_task_state(checkpoint["state_dict"], self.network)
        ours = self.state_dict()
        for key in sorted(theirs.keys() - ours.keys()):
            raise InputError(f"the checkpoint is from another network: this configuration has no {key}{advice(key)}")
        for key in sorted(ours.keys() - theirs.keys()):
            raise InputError(f"the checkpoint is from another network: the checkpoint has no {key}")
        for key in sorted(ours):
            if theirs[key].shape != ours[key].shape:
                shapes = f"{tuple(theirs[key].shape)} in the checkpoint, {tuple(ours[key].shape)} here"
                raise InputError(f"the checkpoint is from another network: {key} is {shapes}")
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self.refuse_other_training(checkpoint)

    def refuse_other_training(self, checkpoint: dict[str, Any]) -> None:
        """Raise an ``InputError`` if the checkpoint's optimiser is another one or was trained with another recipe."""
        refuse_other_optimizer(checkpoint, self.recipe, [len(group["params"]) for group in self.recipe.groups(self)])

    def refuse_nonfinite(self) -> None:
        """Raise an ``InputError`` that names the terms if a training loss since the last call was not finite."""
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
                "lower model.lr, or clip the gradients with trainer.gradient_clip_val"
            )

    def log_losses(self, terms: dict[str, Tensor], images: int) -> None:
        """Log all terms as means over the processes, and refuse a training loss that is not finite.

        A check at every step would wait for the GPU. Except on a CPU, only the steps that are logged check the losses,
        as sums since the last check.
        """
        values = mean_over_processes(torch.stack([value.detach().float() for value in terms.values()]))
        means = dict(zip(terms, values, strict=True))
        if not self._losses:
            self._noted_from = self.global_step
        self._losses = {name: value + self._losses.get(name, 0) for name, value in means.items()}
        if self.device.type == "cpu" or self._logs_now():
            self.refuse_nonfinite()  # every process has the same means, so all of them stop
        for name, value in means.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=images)

    def _logs_now(self) -> bool:
        return self._trainer is not None and (self.global_step + 1) % self.trainer.log_every_n_steps == 0

    def on_train_end(self) -> None:
        """Refuse a loss of the last steps that was not finite."""
        self.refuse_nonfinite()

    def log_scales(self) -> None:
        """Log the network's learnt scales, such as the gain of refined scores."""
        for module in self.network.modules():
            for name in getattr(module, "rates", ()):
                logarithm = getattr(module, name, None)
                if logarithm is not None:
                    self.log(f"train/{name.removeprefix('log_')}", logarithm.detach().exp())

    def clock(self) -> float:
        """Return the time in seconds, after a GPU has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the data's classes, or their numbers if there is no data."""
        data = self.trainer.datamodule
        return data.class_names if data is not None else tuple(str(label) for label in range(self.num_classes))


class EvolvingObject(NamedTuple):
    """Holds one object (or class) of an image and the evolution of its level set.

    Attributes:
        name: Name of the object in pictures.
        box: The object's part of the image: left, top, right, bottom edge in pixels.
        phi: φ⁰ and φ after every iteration, each R×S on a grid over the box.
        features: F, D×R×S, or on a coarser grid; None if the evolution has no features.
        numbers: Hyperparameters of this object alone, M = 1; None if they are fixed or the evolution has none.
        labels: Label of each φ; None labels it by its iteration.
    """

    name: str
    box: tuple[float, float, float, float]
    phi: list[Tensor]
    features: Tensor | None
    numbers: Numbers | None
    labels: list[str] | None = None
