"""Processes that must not outlive the one that started them."""

import ctypes
import os
import signal
import sys

# Set by what starts processes of its own (the runner of a suite, the first process of a run): its process id.
DIE_WITH_PARENT = "LSSEG_DIE_WITH_PARENT"


def die_with_parent() -> None:
    """In a process that a runner, or the first process of a run, started: have the kernel end it with that one.

    However that one went: a killed one tells nobody, and the others would wait for its messages. Before anything heavy
    is imported, so that no moment is left in which it could go unnoticed.
    """
    parent = os.environ.get(DIE_WITH_PARENT)
    if parent and int(parent) != os.getpid() and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        # Processes further down (DDP's ranks) have another parent: they follow it, not the runner.
        os.environ[DIE_WITH_PARENT] = str(os.getpid())
        if os.getppid() != int(parent):
            sys.exit(1)
