"""Runs ``lsseg fit | validate | test | predict`` by LightningCLI, with lsseg's classes, loggers and run folder."""

import fcntl
import itertools
import os
import shutil
import sys
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lsseg.ablation import command

# Importing these modules makes their classes known by their short names.
from lsseg.callbacks import (
    BestCheckpoint,
    JsonlLogger,
    Panels,
    PeriodicCheckpoint,
    SavePredictions,
    StepSeed,
    Stopwatch,
    TestResults,
    WandbRun,
    WholeCheckpoints,
    progress_bar,
)
from lsseg.cli.resume import (
    AS_SAVED,
    KeepModel,
    SaveConfig,
    check_intervals,
    made,
    missing,
    refuse_forks,
    refuse_other_model,
    refuse_own_names,
    refuse_unknown_monitors,
    requeued,
)
from lsseg.data import DataModule
from lsseg.errors import ArgumentError, InputError, refuse_all
from lsseg.failures import Place, located, of_a_lost_process, place_of, raised_by_lightning, silence_chatter, told
from lsseg.metrics.scores import better_is_higher
from lsseg.parser import Parser, check_files, drop_weights, own_errors
from lsseg.process import DIE_WITH_PARENT
from lsseg.tasks import Task
from lsseg.tasks.start import read_checkpoint, refuse_other_classes

RUN_FOLDER = "LSSEG_RUN_FOLDER"
# Before the trainer exists, only these variables tell the processes of some launchers apart.
RANKS = ("NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class LssegCLI(LightningCLI):
    """Adds to LightningCLI the run folder, loggers, callbacks and checkpoints that every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys other than ``model``, ``data`` and ``trainer``."""
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.add_class_arguments(WandbRun, "wandb", skip={"save_dir"}, instantiate=False)
        parser.add_lightning_class_args(Panels, "panels")
        parser.add_lightning_class_args(SavePredictions, "predictions")
        parser.add_argument("--gallery", type=int, default=3, help="number of best and of worst test images to save")
        parser.add_argument("--compile", type=bool, default=False, help="compile the network (torch.compile)")
        parser.add_argument(
            "--channels_last",
            type=bool,
            default=False,
            help="use torch.channels_last for the network's convolutions; mostly faster on CPUs and in bf16 on GPUs",
        )
        parser.add_argument("--test_after_fit", type=bool, default=False, help="test the last weights after training")
        parser.add_argument(
            "--checkpoint_every_n_steps", type=int, default=500, help="optimiser steps between writes of last.ckpt"
        )

    def __init__(self, *args: Any, command: str, held: ExitStack, place: Place, **options: Any) -> None:
        self._command = command
        self._new: Path | None = None  # the run folder, if this command makes it
        self._above: list[Path] = []  # folders above it that this command makes, too
        self._held = held
        self._place = place  # the run folder and configuration, for messages about errors
        self._resumed: dict[str, Any] | None = None  # content of the checkpoint from which the training resumes
        with ExitStack() as on_failure:
            on_failure.callback(self._leave_nothing_half_done)
            super().__init__(*args, **options)
            on_failure.pop_all()

    def _set_seed(self) -> None:
        """Refuse a seed that random generators do not take, because their own messages do not name the key."""
        seed = self._get(self.config, "seed_everything")
        if seed is not None and not 0 <= int(seed) < 2**32:
            raise InputError(f"seed_everything must be a whole number from 0 to {2**32 - 1}, not {seed}")
        super()._set_seed()

    def subcommands(self) -> dict[str, set[str]]:
        """Return only the requested subcommand, because making all parsers takes as long as everything after it."""
        return {self._command: super().subcommands()[self._command]}

    def _leave_nothing_half_done(self) -> None:
        """Remove the folder of a command that failed before it had any result."""
        if self._new is None or not self._new.is_dir() or rank_zero_only.rank:
            return
        # The paths are relative, because a folder above the run folder may also be called wandb.
        inside = [path.relative_to(self._new) for path in self._new.rglob("*") if path.is_file()]
        made = [path for path in inside if path.parts[0] != "wandb"]
        if all(path.name in ("config.yaml", "environment.json", ".lock") for path in made):
            shutil.rmtree(self._new, ignore_errors=True)
            with suppress(OSError):  # another command may have begun a run beside it
                for folder in self._above:
                    folder.rmdir()

    def _parse_ckpt_path(self) -> None:
        """Do nothing, because Lightning would silently prefer the checkpoint's hyperparameters to the command line."""

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, check the checkpoint, and drop the initial weights that the checkpoint replaces."""
        config = self.config[self.subcommand]
        self._place.config = yaml.safe_load(self._parser(self.subcommand).dump(config, **AS_SAVED))
        self.config_dump = self._place.config  # for the hyperparameters: Lightning would make the same once more
        self.save_config_kwargs["resolved"] = self._place.config
        refuse_forks(self._place.config["trainer"]["strategy"])
        checkpoint = config.get("ckpt_path")
        if checkpoint and checkpoint not in ("best", "last", "hpc", "registry"):
            if not Path(checkpoint).is_file():
                raise InputError(f"ckpt_path {checkpoint} is not a file")
            drop_weights(config.model)
            if self.subcommand == "fit":
                self._resumed = read_checkpoint(Path(checkpoint), "ckpt_path ")
                refuse_other_model(Path(checkpoint), self._resumed, self._place.config["model"])
        elif self.subcommand != "fit":
            raise InputError(f"{self.subcommand} needs --ckpt_path: the checkpoint of a run, such as RUN/last.ckpt")
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = self._new_folder(config, checkpoint)
        folder = Path(config.trainer.default_root_dir)
        if not config.trainer.fast_dev_run:
            self._place.folder = folder
        if not folder.exists():
            self._new, self._above = folder, missing(folder.parents)
        begun = (folder / "metrics.jsonl").exists() and not requeued(folder)
        if self.subcommand == "fit" and not checkpoint and begun:
            last = folder / "last.ckpt"
            advice = f"continue it with --ckpt_path {last}" if last.exists() else "delete it (it has no checkpoint)"
            raise InputError(
                f"trainer.default_root_dir {folder} already holds a run: choose another folder, or {advice}"
            )
        if self.subcommand == "fit" and not config.trainer.fast_dev_run:
            self._hold(folder)

    def _hold(self, folder: Path) -> None:
        """Lock the run folder until this command ends or crashes, so that no other command trains in it."""
        if rank_zero_only.rank or any(os.environ.get(name, "0") != "0" for name in RANKS):
            return
        folder.mkdir(parents=True, exist_ok=True)
        lock = self._held.enter_context((folder / ".lock").open("w"))
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # processes of a data loader do not inherit this lock
        except (BlockingIOError, PermissionError):
            self._new = None  # the folder belongs to the other process
            raise InputError(f"another process is training in {folder}: choose another folder") from None
        except OSError:
            warnings.warn(f"{folder} cannot be locked: do not let another process train in it", stacklevel=2)

    def _new_folder(self, config: Any, checkpoint: str | None) -> str:
        # All processes of a run must choose the same name. Processes that DDP starts find it in their environment.
        # Processes of a SLURM step use the numbers of the job and the step instead of the time.
        if RUN_FOLDER in os.environ:
            return os.environ[RUN_FOLDER]
        files = [Path(str(path)) for path in config.get("config") or []]
        if self.subcommand == "fit" and checkpoint:
            own = Path(checkpoint).parent
            if any(path.name.startswith("config") and path.resolve().parent == own.resolve() for path in files):
                return str(own)  # a run that is resumed with its own configuration keeps its folder
        now = time.strftime("%Y%m%d-%H%M%S")
        if SLURMEnvironment.detect() and "SLURM_STEP_ID" in os.environ:
            now = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
        elif TorchElasticEnvironment.detect():
            raise InputError(
                "trainer.default_root_dir must be set, because processes started by torchrun cannot agree on a folder"
            )
        name = f"{self.subcommand}-{now}"
        if self.subcommand == "fit":
            name = f"{files[-1].stem if files else 'fit'}-{name.partition('-')[2]}"
        parent = Path(checkpoint).parent if checkpoint and self.subcommand != "fit" else Path("runs")
        folder = parent / name
        if "." not in now and not config.trainer.fast_dev_run:  # a SLURM step keeps its folder
            others = (parent / f"{name}-{number}" for number in itertools.count(2))
            self._above = missing(folder.parents)
            while not made(folder):  # another command started in the same second
                folder = next(others)
            self._new = folder
        os.environ[RUN_FOLDER] = str(folder)
        return str(folder)

    def instantiate_classes(self) -> None:
        """Make the task and the data, check that they fit together and fit the checkpoint, and prepare the network.

        An error of a class is raised without jsonargparse's report on all its attempts.
        """
        with own_errors():
            super().instantiate_classes()
        self._check_kinds()
        if self._resumed is not None:  # checked before anything is written
            refuse_other_classes(self._resumed, self.datamodule.class_names)
            self.model.on_load_checkpoint(self._resumed)
            self.model.refuse_other_training(self._resumed)
            self._resumed = None
        if self._get(self.config_init, "channels_last"):
            self.model.network.to(memory_format=torch.channels_last)
        if self._get(self.config_init, "compile"):
            if self.model.kind == "instances":
                raise InputError(
                    "compile must be false for a detector, because its tensor shapes change with every image; "
                    "only networks for label maps can be compiled"
                )
            if getattr(self.model.network, "checkpoint", False):
                raise InputError("compile and model.network.checkpoint cannot both be true: set one of them to false")
            self.model.network.compile()  # compiled in place, so that the names in checkpoints stay the same

    def _check_kinds(self) -> None:
        task, data = type(self.model), type(self.datamodule)
        if task.kind != data.kind:
            kinds = {"semantic": "label maps", "instances": "instances"}
            raise InputError(
                f"model {task.__name__} learns {kinds[task.kind]}, but data {data.__name__} has {kinds[data.kind]}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make the trainer with the callbacks that every run has, and with the usual loggers if none is configured."""
        trainer = self._get(self.config_init, "trainer")
        check_intervals(trainer)
        folder = trainer["default_root_dir"]
        callbacks = [StepSeed(), Stopwatch(), TestResults(self._get(self.config_init, "gallery"))]
        if trainer["enable_progress_bar"] is not False:
            callbacks.append(progress_bar())
        if self.subcommand == "fit" and trainer["enable_checkpointing"] is not False and not trainer["fast_dev_run"]:
            every = self._get(self.config_init, "checkpoint_every_n_steps")
            keep = {"dirpath": folder, "enable_version_counter": False, "save_top_k": 1}
            # BestCheckpoint comes first, so that the state in last.ckpt includes its newest score.
            monitor = self.model.monitor
            mode = "max" if better_is_higher(monitor.removeprefix("val/")) else "min"
            callbacks.append(BestCheckpoint(filename="best", monitor=monitor, mode=mode, **keep))
            callbacks.append(PeriodicCheckpoint(filename="last", every_n_train_steps=every, **keep))
            callbacks.append(KeepModel(self._place.config["model"]))
        kwargs["plugins"] = [*_listed(trainer["plugins"]), WholeCheckpoints()]
        if trainer["logger"] in (None, True):
            kwargs["logger"] = self._loggers(folder) if not trainer["fast_dev_run"] else False
        self.trainer_defaults["callbacks"] = callbacks
        made = super().instantiate_trainer(**kwargs)
        refuse_own_names(made.checkpoint_callbacks, Path(folder))
        if self.subcommand == "fit":
            refuse_unknown_monitors(made.callbacks, self.model)
        return made

    def _loggers(self, folder: str) -> list[Any]:
        settings = self._get(self.config_init, "wandb").as_dict()
        mirrored = self.subcommand == "fit" and settings["mode"] != "disabled"
        return [JsonlLogger(folder), *([WandbRun(save_dir=folder, **settings)] if mirrored else [])]

    def before_fit(self) -> None:
        """Check all splits, including the test split, if the run will be tested after the training."""
        if self._get(self.config, "test_after_fit"):
            self.datamodule.check("train", "val", self.datamodule.test_split)

    def after_fit(self) -> None:
        """Test the weights of the last step if ``test_after_fit`` is set, and print where the run is."""
        tested = self._get(self.config, "test_after_fit")
        if tested:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            if not tested:  # the test prints the folder itself
                print(f"the run is in {self.trainer.default_root_dir}")
            for logger in self.trainer.loggers:
                if isinstance(logger, WandbRun) and (where := logger.where()):
                    print(where)

    def predict(self, **arguments: Any) -> None:
        """Predict without keeping the results, which Lightning would hold in memory until the last image is done."""
        self.trainer.predict(**{**arguments, "return_predictions": False})

    def test(self, **arguments: Any) -> None:
        """Test without Lightning's table of scores, because the project prints its own table of classes."""
        self.trainer.test(**{**arguments, "verbose": False})


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


# Every command of this module passes these arguments to its LightningCLI.
SETTINGS: dict[str, Any] = {
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "auto_configure_optimizers": False,
    "save_config_callback": SaveConfig,
    "seed_everything_default": 0,
    "trainer_defaults": {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 10},
    "parser_class": Parser,
    "parser_kwargs": {"prog": "lsseg"},
}


def main(argv: list[str]) -> int:
    """Run ``fit``, ``validate``, ``test``, ``predict`` or ``ablate``; return the exit status.

    ``ablate`` is here because it checks the arguments of many ``fit`` commands first.
    """
    silence_chatter()
    if argv[0] == "ablate":
        return command.main(argv, refuse_unreadable)
    os.environ.setdefault("WANDB_SILENT", "true")
    check_files(argv)
    held, place = ExitStack(), Place()
    # The other processes of DDP end together with the first one.
    first = os.environ.setdefault(DIE_WITH_PARENT, str(os.getpid())) == str(os.getpid())
    try:
        LssegCLI(
            Task,
            DataModule,
            command=argv[0],
            held=held,
            place=place,
            **SETTINGS,
            save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
            # args is None by default, because DDP starts further processes with sys.argv. Tests pass other arguments.
            args=None if argv == sys.argv[1:] else argv,
        )
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from error
    except ValueError as error:
        if isinstance(error, ArgumentError):
            raise located(error, place) from error
        if isinstance(error, InputError):
            raise
        known = raised_by_lightning(error)
        raise InputError(" ".join(str(error).split()) if known else told(error, place)) from error
    except RuntimeError as error:
        if "/plugins/environments/" in place_of(error):  # a cluster job was started in the wrong way
            raise InputError(" ".join(str(error).split())) from error
        if not of_a_lost_process(error):
            raise InputError(told(error, place)) from error
        raise InputError(
            "another process of this run ended (its message is above, unless it was killed): "
            "continue with the same command and --ckpt_path RUN/last.ckpt"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        if isinstance(error, KeyError) and "pytorch-lightning_version" in str(error):
            raise InputError(
                "ckpt_path has only weights: use the checkpoint of a run, or start a training from it with model.start"
            ) from error
        raise InputError(told(error, place)) from error
    finally:
        held.close()
        if first:
            os.environ.pop(DIE_WITH_PARENT)
        os.environ.pop(RUN_FOLDER, None)  # the next command of this process chooses its own folder
    return 0


class AllRead(Exception):
    """Ends a ``Reader`` after it has read all arguments without an error."""


class Reader(LssegCLI):
    """Reads the arguments of several runs with one parser, and instantiates no class."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Read all arguments; raise ``InputError`` with all problems, or ``AllRead`` if there are none."""
        problems = []
        for name, argv in args.items():
            try:
                check_files(argv)
                parser.parse_args(argv)
            except InputError as error:
                problems.append(f"{name}: {error}")
        refuse_all("the suite", problems)
        raise AllRead


def refuse_unreadable(runs: dict[str, list[str]]) -> None:
    """Read the ``lsseg fit`` arguments of each variant; raise ``InputError`` with all problems, if there are any."""
    with suppress(AllRead):
        Reader(Task, DataModule, command="fit", held=ExitStack(), place=Place(), args=runs, **SETTINGS)
