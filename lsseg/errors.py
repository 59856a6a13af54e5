"""What a user did wrong, in one line."""

from collections.abc import Sequence

SHOWN = 20  # of the lines of one message


class InputError(ValueError):
    """Input that cannot be used: the message is one line that names the file or the key and what would be right.

    The command line prints the message without a traceback and exits with status 1.
    """


class ArgumentError(InputError):
    """An argument that cannot be used: the message begins with its name.

    The command line puts the key of the class in front, wherever it stands in a configuration.
    """


def require(valid: bool, name: str, value: object, right: str) -> None:
    """Raise an ``ArgumentError`` for a value that is not valid.

    Args:
        valid: Whether it is.
        name: The argument's.
        value: What was given.
        right: What would be right, as in "must be at least 1".

    >>> require(2 > 3, "steps", 2, "must be more than 3")
    Traceback (most recent call last):
    lsseg.errors.ArgumentError: steps must be more than 3, not 2
    """
    if not valid:
        raise ArgumentError(f"{name} {right}, not {value}")


def require_positive(name: str, values: Sequence[float]) -> None:
    """Raise an ``ArgumentError`` unless these are numbers above 0, and at least one."""
    right = bool(values) and all(0 < value < float("inf") for value in values)
    require(right, name, list(values), "must be positive numbers")


def require_size(name: str, size: Sequence[int] | None) -> None:
    """Raise an ``ArgumentError`` unless this is a height and a width, or None."""
    if size is not None:
        require(min(size) >= 1, name, list(size), "must be two positive numbers (height, width)")


def refuse_all(what: str, problems: Sequence[str]) -> None:
    """Raise one ``InputError`` for all problems, if there are any; one alone makes one line."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        more = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise InputError("\n  ".join([f"{what}: {len(problems)} problems", *problems[:SHOWN], *more]))
