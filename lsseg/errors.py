"""Defines the errors that tell users what they did wrong, mostly in one line."""

from collections.abc import Sequence

SHOWN = 20  # problems that one message lists


class InputError(ValueError):
    """Reports an input that cannot be used: one line names the file or the key, and what would be right.

    The command line prints the message without a traceback and exits with status 1.
    """


class ArgumentError(InputError):
    """Reports an argument that cannot be used: the message begins with the argument's name.

    The command line puts the configuration key of the argument's class in front of the message.
    """


def require(valid: bool, name: str, value: object, right: str) -> None:
    """Raise an ``ArgumentError`` for a value that is not valid.

    Args:
        valid: Whether the value is valid.
        name: Name of the argument.
        value: The given value.
        right: The condition that the value breaks, such as "must be at least 1".

    >>> require(2 > 3, "steps", 2, "must be more than 3")
    Traceback (most recent call last):
    lsseg.errors.ArgumentError: steps must be more than 3, not 2
    """
    if not valid:
        raise ArgumentError(f"{name} {right}, not {value}")


def require_positive(name: str, values: Sequence[float]) -> None:
    """Raise an ``ArgumentError`` unless there is at least one value and all values are finite and above 0."""
    right = bool(values) and all(0 < value < float("inf") for value in values)
    require(right, name, list(values), "must be positive numbers")


def require_size(name: str, size: Sequence[int] | None) -> None:
    """Raise an ``ArgumentError`` unless the size is None, or a height and a width of at least 1."""
    if size is not None:
        require(min(size) >= 1, name, list(size), "must be two positive numbers (height, width)")


def refuse_all(what: str, problems: Sequence[str]) -> None:
    """Raise one ``InputError`` for all problems, if there are any; a single problem becomes the whole message."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        more = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError("\n  ".join([f"{what}: {len(problems)} problems", *problems[:SHOWN], *more]))
