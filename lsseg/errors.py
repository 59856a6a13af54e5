"""What a user did wrong, in one line."""


class InputError(ValueError):
    """Input that cannot be used: the message is one line that names the file or the key and what would be right.

    The command line prints the message without a traceback and exits with status 1.
    """


def require(valid: bool, key: str, value: object, right: str) -> None:
    """Raise an ``InputError`` for a key's value that is not valid.

    Args:
        valid: Whether it is.
        key: As it is written in a configuration.
        value: What was given.
        right: What would be right, as in "must be at least 1".

    >>> require(2 > 3, "model.steps", 2, "must be more than 3")
    Traceback (most recent call last):
    lsseg.errors.InputError: model.steps must be more than 3, not 2
    """
    if not valid:
        raise InputError(f"{key} {right}, not {value}")
