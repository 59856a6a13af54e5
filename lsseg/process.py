"""Ends processes when the process that started them ends, and reads the memory of this one."""

import ctypes
import os
import signal
import sys
from pathlib import Path

# The runner of a suite and the first process of a run set this variable to their process id.
DIE_WITH_PARENT = "LSSEG_DIE_WITH_PARENT"


def die_with_parent() -> None:
    """Let Linux kill this process when its parent, the runner of a suite or the first process of a run, ends.

    A killed parent tells nobody that it ends, and its children would wait for its messages. The command line calls this
    before any heavy import, so that a parent that ends during the imports is noticed, too.
    """
    parent = os.environ.get(DIE_WITH_PARENT)
    if parent and int(parent) != os.getpid() and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        # Processes that this one starts (DDP's ranks) must follow this process and not the runner.
        os.environ[DIE_WITH_PARENT] = str(os.getpid())
        if os.getppid() != int(parent):
            sys.exit(1)


def memory(key: str) -> int | None:
    """Return the memory of this process now (``VmRSS``) or at most (``VmHWM``), in bytes; None where Linux is not."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
