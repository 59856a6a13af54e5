"""What a user did wrong, in one line."""


class InputError(ValueError):
    """Input that cannot be used: the message is one line that names the file or the key and what would be right.

    The command line prints the message without a traceback and exits with status 1.
    """
