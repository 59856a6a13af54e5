"""The command line's parser, which says in one line what is wrong, and what is refused of a configuration."""

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser

from lsseg.arguments import nearest, unknown_option
from lsseg.callbacks import BestCheckpoint, PeriodicCheckpoint
from lsseg.cli.failures import Place, located
from lsseg.errors import ArgumentError, InputError
from lsseg.metrics.scores import of_kind

# What jsonargparse says of every attempt to read a value, whatever is wrong with it.
BOILERPLATE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Expected a <class 'NoneType'>|Given value|Expected a path but"
)
UNKNOWN_CLASS = r"'\1' is no known class; give a class of lsseg by its name, or yours by its import path"


class Parser(LightningArgumentParser):
    """Says what is wrong in one line instead of a page of usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.allow_abbrev = False

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raise ``InputError`` instead of printing; answer an unknown key with the nearest one that there is."""
        parser = getattr(ex, "subcommand_parser", self)
        raise InputError(concise(unknown_key(str(message), parser)))

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Read a null for a nested class as null: jsonargparse hands it on as the word that Python prints."""
        if args is not None:
            args = [re.sub(r"^(--[\w.]+=)None$", r"\1null", arg) for arg in args]
        return super().parse_args(args, *others, **options)


def unknown_key(message: str, parser: LightningArgumentParser) -> str:
    """The parser's message of a key, or an option, that there is not, with the nearest that there is."""
    found = re.search(
        r"(?:Group '(?P<group>[^']+)' does not accept o|[Oo])ption '(?P<key>[^']+)'(?: is not accepted)?", message
    )
    if not found:
        return unknown_option(message, parser)
    key = f"{found['group']}.{found['key']}" if found["group"] else found["key"]
    known = {action.dest for action in parser._actions}
    hint = nearest(key, known) or nearest(key.partition(".")[0], {name.partition(".")[0] for name in known})
    return f"{message[: found.end()]}{hint}{message[found.end() :]}"


def concise(message: str) -> str:
    r"""Reduce jsonargparse's account of all it has tried to the key and what is wrong with it.

    >>> concise('Parser key "model": Does not validate against ...\n  - Parser key "lr": Expected a float. Got: abc')
    'model.lr: Expected a float. Got: abc'
    """
    keys: list[str] = []
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip(" -")
        # The second form is what an inner parser has already reduced.
        while not reasons and (
            found := re.match(r'Parser key "([^"]+)":\s*|([a-z_][\w.]*): (?=Expected|Option|Problem|\')', text)
        ):
            keys.append(found[1] or found[2])
            text = text[found.end() :]
        if text and reasons and reasons[0].endswith(":"):
            reasons[0] += f" {text}"
        elif text and not BOILERPLATE.match(text) and not reasons:
            reasons.append(re.sub(r"^Expected a dot import path string: (\S+).*", UNKNOWN_CLASS, text))
    if "required: fit." in message:
        return "nothing to train: give a configuration with --config FILE (or --model and --data)"
    if reasons and not keys and BOILERPLATE.match(message):
        return reasons[0]
    if not keys or not reasons:
        return " ".join(message.split())
    return f"{'.'.join(keys)}: {reasons[0]}"


@contextmanager
def own_errors(config: Any = None) -> Iterator[None]:
    """Raise what a class raises as it is, not wrapped in jsonargparse's account of what it tried.

    Args:
        config: The configuration in plain values, where the command has no other place that names its keys.
    """
    try:
        yield
    except ValueError as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        for cause in causes:
            if isinstance(cause, ArgumentError) and config is not None:
                raise located(cause, Place(config=config)) from None
            if isinstance(cause, InputError) or not _raised_by_the_parser(cause):
                raise cause from None
        raise ValueError(concise(str(error))) from error


def _raised_by_the_parser(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or "/jsonargparse/" in frames[-1].filename


class ConfigDumper(yaml.SafeDumper):
    """Quotes text that the command line's parser would read as a number, such as the id 2e372009."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """A text, in quotes where it needs them."""
        try:
            float(data)
        except ValueError:
            return super().represent_str(data)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="'")


ConfigDumper.add_representer(str, ConfigDumper.represent_str)


def check_files(argv: list[str]) -> None:
    """Name the configuration file that is no YAML, or misspells a class's keys; the parser's own message does not.

    Args:
        argv: The arguments of the command line.

    Raises:
        InputError: Naming the file.
    """
    for name, value in zip(argv, [*argv[1:], ""], strict=True):
        path = Path(value if name in ("--config", "-c") else name.partition("--config=")[2])
        if path.is_file():
            try:
                content = yaml.safe_load(path.read_text())
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
            check_class_keys(content, path)


def check_class_keys(content: Any, path: Path, key: str = "") -> None:
    """Refuse what a configuration file has beside a class and its arguments.

    Args:
        content: What the file, or a part of it, holds.
        path: The file.
        key: Key of the part.

    Raises:
        InputError: Naming the key.
    """
    if isinstance(content, list):
        for value in content:
            check_class_keys(value, path, key)
    elif isinstance(content, dict):
        right = ("class_path", "init_args", "dict_kwargs")
        for name, value in content.items():
            if not content.keys().isdisjoint(right[:2]) and name not in right:
                where = f"{key}.{name}".lstrip(".")
                raise InputError(f"{path}: {where} is no key of a class{nearest(str(name), right)}")
            check_class_keys(value, path, f"{key}.{name}".lstrip("."))


def refuse_forks(strategy: Any) -> None:
    """Refuse processes that are copies of this one: they share the scores' memory and count every pixel again.

    Args:
        strategy: The name of a strategy, or a class and its arguments, in plain values.

    Raises:
        InputError: If it starts its processes so.
    """
    options = strategy.get("init_args") or {} if isinstance(strategy, dict) else {}
    method = options.get("start_method") or "popen"
    name = strategy if isinstance(strategy, str) else f"with start_method {method}"
    if method != "popen" or any(word in name for word in ("spawn", "fork", "notebook")):
        raise InputError(f"trainer.strategy {name} is not for this command, whose scores it would spoil: take ddp")


def refuse_own_names(callbacks: list[Any], folder: Path) -> None:
    """Refuse a checkpoint of the configuration's that would write the files that a run itself writes.

    Args:
        callbacks: All that write checkpoints.
        folder: The run's.

    Raises:
        InputError: If there is one.
    """
    for callback in callbacks:
        names = {str(callback.filename), *(["last"] if callback.save_last else [])} & {"best", "last"}
        own = isinstance(callback, BestCheckpoint | PeriodicCheckpoint)
        if names and not own and callback.dirpath and Path(callback.dirpath).resolve() == folder.resolve():
            raise InputError(
                f"trainer.callbacks: a ModelCheckpoint writes {names.pop()}.ckpt, as the run itself does: give it "
                "another dirpath or filename"
            )


def refuse_unknown_monitors(callbacks: list[Any], task: Any) -> None:
    """Refuse a callback that waits for a validation score which no validation will have.

    Lightning says so after the first validation only. Where a task or a callback of the user's own may log further
    names, it is left to say it.

    Args:
        callbacks: All of the run's.
        task: What is trained.

    Raises:
        InputError: Naming the callback, its key, and the nearest name that there is.
    """
    if not all(type(one).__module__.startswith(("lsseg.", "pytorch_lightning.")) for one in (task, *callbacks)):
        return
    known = [f"val/{score.name}" for score in of_kind(task.kind) if score.trained]
    known += ["val/loss"] if task.kind == "semantic" else []
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, ModelCheckpoint) and monitor in ("epoch", "step"):  # which it knows by itself
            continue
        if monitor is not None and monitor not in known and not monitor.startswith("train/"):
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} has monitor {monitor!r}, which is no score of a "
                f"validation{nearest(monitor, known)}; there are {', '.join(known)}"
            )
