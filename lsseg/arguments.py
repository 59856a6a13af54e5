"""Parses options by their full names: abbreviations are refused, and errors name the nearest known option."""

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to an unknown one, or an empty text if none resembles it.

    >>> nearest("--trainer.max_step", ["--trainer.max_epochs", "--trainer.max_steps"])
    '; did you mean --trainer.max_steps?'
    >>> nearest("seed", ["seed_everything"]), nearest("wheel", ["lr"])
    ('; did you mean seed_everything?', '')
    """
    names = [name for name in dict.fromkeys(known) if name != word]
    longer = sorted((name for name in names if len(word.strip("-")) > 1 and name.startswith(word)), key=len)
    found = longer[:1] or difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of a parser and of its subcommands, such as ``--config``."""
    found: list[str] = []
    for action in parser._actions:
        found.extend(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found.extend(options_of(inner))
    return [name for name in found if name.startswith("--")]


def unknown_option(message: str, parser: argparse.ArgumentParser) -> str:
    """Add the nearest known option to argparse's message about an unknown option."""
    words = re.match(r"unrecognized arguments: (.*)", message)
    option = next((word for word in words[1].split() if word.startswith("-")), "") if words else ""
    return message + nearest(option.partition("=")[0], options_of(parser)) if option else message


class Arguments(argparse.ArgumentParser):
    """Parses arguments without abbreviations and prints an error as one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Print the error as one line and exit with status 2."""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        self.exit(2, f"{self.prog}: error: {unknown_option(message, self)}\n")
