"""Runs the ``lsseg`` command: it imports only the module of the requested subcommand."""

import argparse
import importlib
import os
import select
import sys
import traceback
from collections.abc import Sequence

from lsseg.arguments import Arguments
from lsseg.errors import InputError
from lsseg.failures import Place, original, told
from lsseg.process import die_with_parent

# Each command has a module, whose main(argv) returns the exit status, and a description.
COMMANDS = {
    "fit": ("lsseg.cli.lightning", "train (and test with --test_after_fit true)"),
    "validate": ("lsseg.cli.lightning", "score a checkpoint on the validation split"),
    "test": ("lsseg.cli.lightning", "score a checkpoint on the test split"),
    "predict": ("lsseg.cli.lightning", "segment a folder of images"),
    "refine": ("lsseg.cli.refine", "move the contours of masks to the contours in their images"),
    "export": ("lsseg.cli.export", "write a trained network as one file, ONNX or torch.export"),
    "ablate": ("lsseg.cli.lightning", "run a suite of experiments and report on it"),
    "run": ("lsseg.ablation.command", "do one run of a suite (used by W&B agents and clusters)"),
    "report": ("lsseg.ablation.command", "rebuild the table and figures of a suite from its files"),
    "data": ("lsseg.cli.data", "show which data sets are on this machine, and download one"),
    "init": ("lsseg.cli.init", "write a configuration for a folder of images and masks"),
    "bench": ("lsseg.bench.command", "measure the speed and memory of the numeric core"),
}
# `eval "$(lsseg --completion bash)"` makes bash complete first the command and then names of files.
COMPLETION = """\
_lsseg() {
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "NAMES" -- "${COMP_WORDS[1]}")); fi
}
complete -o default -F _lsseg lsseg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit status: 0 for success, 1 for an error, 130 for an interrupt, 141 if nobody reads the output any more.

    Raises:
        SystemExit: With status 2 for wrong usage, and with status 0 after ``--help``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Arguments(
        prog="lsseg",
        description="Deep level-set segmentation.",
        epilog="\n".join(["commands:", *(f"  {name:9} {text}" for name, (_, text) in COMMANDS.items())])
        + "\n\n`lsseg COMMAND --help` lists the options of a command; --debug after any command shows the traceback of "
        "an error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lsseg COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--completion", choices=["bash"], help="print a script for eval that completes commands")
    if argv[:2] == ["--completion", "bash"]:
        print(COMPLETION.replace("NAMES", " ".join(COMMANDS)), end="")
        return 0
    if argv[:1] == ["--version"]:
        from lsseg import __version__

        print(__version__)
        return 0
    command = parser.parse_args(argv[: 2 if argv[:1] == ["--completion"] else 1]).command
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    die_with_parent()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # makes the user's own classes in this folder importable
    try:
        module = importlib.import_module(COMMANDS[command][0])  # takes seconds, in which people interrupt, too
        status: int = module.main(argv)
        if sys.stdout:  # it is None if it was closed
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("lsseg: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 141  # as in `lsseg … | head`: a shell reports 141 for a program that SIGPIPE has ended
        if debug:
            traceback.print_exc()
        return _fail(_one_line(error))


def _one_line(error: Exception) -> str:
    """Describe in one line an error of the user, of the operating system or of a library."""
    if isinstance(error, InputError):
        return original(error)
    if isinstance(error, OSError) and error.strerror:
        # The operating system's words say, for example, that the disk is full or read-only, or that a file is missing.
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    return told(error, Place())


def _reader_is_gone() -> bool:
    """Return whether nobody reads standard output any more; if so, discard what is still written to it."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError):  # there is no standard output
        return False
    poll = select.poll()
    poll.register(output, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def _fail(message: str) -> int:
    print(f"lsseg: error: {message}", file=sys.stderr, flush=True)
    return 1
