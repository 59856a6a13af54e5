"""The optimiser recipe that all methods share."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lsseg.errors import ArgumentError, InputError, require


class Schedule(LambdaLR):
    """A learning rate that depends on the step alone: a run that goes on for longer has the longer training's rate."""

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step, and nothing of how long the training was to be.

        Args:
            state_dict: State of this class, or of torch's schedules, which older versions used, one after the other.
        """
        self.last_epoch = state_dict.get("_schedulers", [state_dict])[-1]["last_epoch"]
        rates = [rate * factor(self.last_epoch) for rate, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        self._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@dataclass
class Recipe:
    """SGD with momentum or AdamW, weight decay, and a rate that falls with every step or at a few.

    The "poly" rate of Kim 2019 is lr · (1 - step/steps)^power. With milestones, as in Homayounfar 2020 and in Zhang
    2019 (after 20 of 40 epochs), it is lr, and a tenth of what it was from each of them on.

    Args:
        name: ``sgd`` or ``adamw``.
        lr: Learning rate at the first step.
        momentum: Momentum of SGD; AdamW does not use it.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        poly_power: Exponent of the decay; 0 keeps the rate constant.
        new_layers: Factor of the rate for what is no part of an encoder (a VGG's fully connected layers are).
        milestones: Shares of the training after which the rate falls to a tenth, instead of "poly"; null is "poly".
        warmup: Share of the training in which the rate rises to lr first, in a straight line.
        scale_lr: Learning rate at the first step of learnt scales, such as the gain of refined scores. A module names
            them in ``rates``. They are logarithms of numbers, of which 0 means 1: weight decay leaves them alone.
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
                "lr_milestones must be shares of the training in (0, 1), such as 0.5 for halfway, each after the "
                f"one before, not {shares}"
            )

    def build(self, module: nn.Module, steps: float) -> dict[str, Any]:
        """Optimiser and schedule in the form Lightning takes.

        Args:
            module: Module whose parameters are optimised.
            steps: Optimiser steps of the whole training; 0 of one that only tests.

        Raises:
            InputError: If the training has no end, so that the rate could not decay to 0 at it.
        """
        if not math.isfinite(steps):
            raise InputError(
                "the learning rate falls to 0 at the last step: set trainer.max_steps or trainer.max_epochs"
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
        """What the learning rate of a step is multiplied with, in a training of so many steps."""
        if self.milestones is None:
            factor = max(0.0, 1 - step / steps) ** self.poly_power
        else:
            factor = 0.1 ** sum(step >= round(share * steps) for share in self.milestones)
        rising = round(self.warmup * steps)
        return factor * min(1.0, (step + 1) / (rising + 1)) if rising else factor

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Parameters by learning rate and weight decay, in the form torch's optimisers take."""
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
