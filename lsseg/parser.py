"""Defines the command line's parser, which reports an error in one line, and checks of configurations."""

import argparse
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

# Lightning still calls a method that jsonargparse has renamed. Users can do nothing about the warning.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import yaml
from jsonargparse import DefaultHelpFormatter
from pytorch_lightning.cli import LightningArgumentParser

from lsseg.arguments import nearest, unknown_option
from lsseg.errors import ArgumentError, InputError
from lsseg.failures import Place, located
from lsseg.files import read_yaml

# jsonargparse prints these phrases for every attempt to read a value; they do not say what is wrong.
BOILERPLATE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Expected a <class 'NoneType'>|Given value|Expected a path but"
)
# Python's names of types, and the words that messages use instead.
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list such as [A, B]",
    "list": "a list such as [A, B]",
    "dict": "keys and values",
}
LONGEST_LIST = 2000  # characters of a list of classes in the help; a longer list is shortened
CLASS_FIRST = "; it belongs to a class, which must be named first"


class Help(DefaultHelpFormatter):
    """Shortens a long list of known classes in the help to this project's own classes that fit the key."""

    def _get_help_string(self, action: argparse.Action) -> str:
        help = super()._get_help_string(action)
        described, listed, names = help.rpartition(", known subclasses: ")
        own = sorted({name for name in re.findall(r"[\w.]+", names) if re.match(r"lsseg\.\w+\.[A-Z]\w+$", name)})
        if not listed or len(names) < LONGEST_LIST:
            return help
        room = {"network": "models", "criterion": "losses", "loss": "losses"}.get(action.dest.rpartition(".")[2])
        chosen = [name for name in own if room is None or name.startswith(f"lsseg.{room}.")]
        return f"{described}{listed}{', '.join(chosen)}, and others)"


class Parser(LightningArgumentParser):
    """Parses configurations and reports an error in one line instead of a page of usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help, **options})
        self.allow_abbrev = False

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Raise ``InputError`` instead of printing the usage; for an unknown key, name the nearest known key."""
        parser = getattr(ex, "subcommand_parser", self)
        raise InputError(concise(unknown_key(str(message), parser)))

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Replace ``None`` by ``null``, because jsonargparse passes on a nested class's null as Python prints it."""
        if args is not None:
            args = [re.sub(r"^(--[\w.]+=)None$", r"\1null", arg) for arg in args]
        return super().parse_args(args, *others, **options)


def unknown_key(message: str, parser: LightningArgumentParser) -> str:
    """Add the nearest known key or option to the parser's message about an unknown one."""
    found = re.search(
        r"(?:Group '(?P<group>[^']+)' does not accept o|[Oo])ption '(?P<key>[^']+)'(?: is not accepted)?", message
    )
    if not found:
        return unknown_option(message, parser)
    key = f"{found['group']}.{found['key']}" if found["group"] else found["key"]
    known = {action.dest for action in parser._actions if action.dest.split(".")[-1] != "help"}
    hint = nearest(key, known) or nearest(key.partition(".")[0], {name.partition(".")[0] for name in known})
    if not known:
        hint = CLASS_FIRST  # no keys are known before the class is named
    elif CLASS_FIRST in message:
        hint = ""
    return f"{message[: found.end()]}{hint}{message[found.end() :]}"


def concise(message: str) -> str:
    r"""Reduce jsonargparse's report on all its attempts to the key and what is wrong with its value.

    >>> wrong = "Expected a <class 'float'>. Got value: a"
    >>> concise(f'Parser key "model": Does not validate against ...\n  - Parser key "lr": {wrong}')
    'model.lr: expected a number, not a'
    """
    keys: list[str] = []
    reasons: list[str] = []
    for line in message.splitlines():
        text = line.strip(" -")
        # The second form is a message that an inner parser has already reduced.
        while not reasons and (
            found := re.match(r'Parser key "([^"]+)":\s*|([a-z_][\w.]*): (?=[Ee]xpected|Option|Problem|Not a|\')', text)
        ):
            keys.append(found[1] or found[2])
            text = text[found.end() :]
        if text and reasons and reasons[0].endswith(":"):
            reasons[0] += f" {text}"
        elif text and not BOILERPLATE.match(text) and not reasons:
            reasons.append(re.sub(r"^Expected a dot import path string: (\S+).*", unknown_class, text))
    if "required: fit." in message:
        return "the configuration has no model or no data: use --config FILE, or --model and --data"
    if reasons and not keys and BOILERPLATE.match(message):
        return reasons[0]
    if not keys or not reasons:
        return " ".join(message.split())
    if keys == ["seed_everything"]:  # true and false are accepted, too, but nobody means them
        reasons[0] = reasons[0].replace("'bool'", "'int'")
    return f"{'.'.join(keys)}: {in_words(reasons[0])}"


def unknown_class(found: re.Match[str]) -> str:
    """Return the message about an unknown class, with the nearest known class."""
    rooms = map(import_module, ("lsseg.data", "lsseg.losses", "lsseg.models", "lsseg.tasks"))
    hint = nearest(found[1], (name for room in rooms for name in room.__all__ if name[0].isupper()))
    return (
        f"'{found[1]}' is not a known class"
        f"{hint or '; use the name of a class of lsseg, or the import path of your own class'}"
    )


def in_words(reason: str) -> str:
    """Say in words what jsonargparse expected, without Python's types.

    >>> in_words("Expected a <class 'float'>. Got value: x")
    'expected a number, not x'
    >>> in_words("Expected a typing.Literal['mean', 'none']. Got value: [1]")
    'expected mean or none, not [1]'
    """
    reason = re.sub("^Not a valid subclass of (.*)", r"Expected a class: a subclass of \1", reason)
    found = re.fullmatch(r"Expected a (.*?)(?:\. Got value: (.*))?", reason)
    if not found:
        return reason
    what, value = found.groups()
    if kind := re.fullmatch(r"<class '(\w+)'>", what):
        what = WORDS.get(kind[1], f"a {kind[1]}")
    elif choices := re.fullmatch(r"typing\.Literal\[(.*)\]", what):
        *others, last = choices[1].replace("'", "").split(", ")
        what = f"{', '.join(others)} or {last}" if others else last
    else:
        what = f"a {what}".replace("tuple with", "list of")
    return f"expected {what}{f', not {value}' if value else ''}"


@contextmanager
def own_errors(config: Any = None) -> Iterator[None]:
    """Raise the error of a class itself, without jsonargparse's report on all its attempts.

    Args:
        config: The configuration in plain values, which gives an ``ArgumentError`` the key of its class; None leaves
            the key to the caller.
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
        """Represent a text, in quotes if Python can read it as a number."""
        try:
            float(data)
        except ValueError:
            return super().represent_str(data)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="'")


ConfigDumper.add_representer(str, ConfigDumper.represent_str)


def check_files(argv: list[str]) -> None:
    """Refuse a configuration file that is not YAML or misspells a class's keys.

    The parser's own message does not name the file.

    Args:
        argv: The arguments of the command line.

    Raises:
        InputError: If there is such a file; the message names it.
    """
    for name, value in zip(argv, [*argv[1:], ""], strict=True):
        path = Path(value if name in ("--config", "-c") else name.partition("--config=")[2])
        if path.is_file():
            check_class_keys(read_yaml(path), path)


def check_class_keys(content: Any, path: Path, key: str = "") -> None:
    """Refuse keys of a class other than ``class_path``, ``init_args`` and ``dict_kwargs``.

    Args:
        content: Content of the file, or of a part of it.
        path: Path of the file.
        key: Key of the part.

    Raises:
        InputError: If there is such a key; the message names it.
    """
    if isinstance(content, list):
        for value in content:
            check_class_keys(value, path, key)
    elif isinstance(content, dict):
        right = ("class_path", "init_args", "dict_kwargs")
        for name, value in content.items():
            if not content.keys().isdisjoint(right[:2]) and name not in right:
                where = f"{key}.{name}".lstrip(".")
                raise InputError(
                    f"{path}: {where} is not a key of a class ({', '.join(right)}){nearest(str(name), right)}"
                )
            check_class_keys(value, path, f"{key}.{name}".lstrip("."))


def drop_weights(config: Any) -> None:
    """Set every ``encoder_weights`` and ``start`` in a configuration to null, because a checkpoint replaces them."""
    for key in list(config.keys(branches=True)):
        if key.split(".")[-1] in ("encoder_weights", "start"):
            config[key] = None
