"""Which of this machine's GPUs a run gets."""

import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lsseg.errors import InputError

QUERY = ("nvidia-smi", "--query-gpu=uuid,index,memory.free,memory.total", "--format=csv,noheader,nounits")
ALMOST_ALL = 0.9  # of its memory: a GPU is never quite empty
SECONDS = 5.0  # between looks at the memory


@dataclass(frozen=True)
class Gpu:
    """A graphics card, its memory in MiB."""

    uuid: str
    index: str
    free: float
    total: float


class Gpus:
    """Lends GPUs to runs: as many runs to a GPU as its memory holds, and none while others use that memory.

    Args:
        per_run: How many each run gets.
        memory: GiB that a run needs on each of its GPUs; None is all of it, so one run to a GPU.
        say: Told when a run has to wait for what other people hold.

    Raises:
        InputError: If the machine has GPUs, but too few or too small ones.
    """

    def __init__(self, per_run: int = 1, memory: float | None = None, say: Callable[[str], None] = print) -> None:
        self.per_run, self.memory, self.say = per_run, memory, say
        self._ours: Counter[str] = Counter()
        self._others: dict[str, float] = {}  # MiB that other people's processes held when none of ours ran
        self._changed = threading.Condition()
        self.places = self._places()

    def _places(self) -> int:
        """How many runs there is room for when nobody else uses the machine; 0 without a GPU."""
        gpus = visible_gpus()
        if not gpus:
            return 0
        rooms = sorted((int(gpu.total // self._needed(gpu)) for gpu in gpus), reverse=True)
        if self.per_run > len(gpus) or not rooms[self.per_run - 1]:
            sizes = ", ".join(f"{gpu.total / 1024:.0f} GiB" for gpu in gpus)
            raise InputError(
                f"--gpus-per-run {self.per_run}"
                + (f" --gpu-memory {self.memory:g}" if self.memory else "")
                + f" does not fit: the GPUs here are {sizes}"
            )
        return max(1, sum(rooms) // self.per_run)

    def _needed(self, gpu: Gpu) -> float:
        return ALMOST_ALL * gpu.total if self.memory is None else 1024 * self.memory

    @contextmanager
    def lend(self, stop: threading.Event) -> Iterator[list[str]]:
        """Wait until there is room, or ``stop``; gives the UUIDs of a run's GPUs, none on a machine without."""
        own: list[str] = []
        told = False
        with self._changed:
            while self.places and not own and not stop.is_set():
                roomy = self._roomy()
                if len(roomy) >= self.per_run:
                    own = roomy[: self.per_run]
                else:
                    if not told and not any(self._ours.values()):
                        self._tell()
                        told = True
                    self._changed.wait(SECONDS)  # for another run's end, or what other people free
            self._ours.update(own)
        try:
            yield own
        finally:
            with self._changed:
                self._ours.subtract(own)
                self._changed.notify_all()

    def _roomy(self) -> list[str]:
        """GPUs with room for one more run, those with most of it first."""
        room = {}
        for gpu in visible_gpus():
            # A run that has just started has not taken its memory yet: what it will take is counted from its start.
            if not self._ours[gpu.uuid]:
                self._others[gpu.uuid] = gpu.total - gpu.free
            left = min(gpu.free, gpu.total - self._others[gpu.uuid] - self._needed(gpu) * self._ours[gpu.uuid])
            if left >= self._needed(gpu):
                room[gpu.uuid] = left
        return sorted(room, key=lambda uuid: -room[uuid])

    def _tell(self) -> None:
        """Say what is waited for."""
        gpus = visible_gpus()
        free = ", ".join(f"{gpu.free / 1024:.1f} of {gpu.total / 1024:.1f}" for gpu in gpus)
        needed = min((self._needed(gpu) for gpu in gpus), default=0) / 1024
        self.say(f"waiting for {self.per_run} GPU(s) with {needed:.1f} GiB free (--gpu-memory); free now: {free} GiB")


def visible_gpus() -> list[Gpu]:
    """This machine's NVIDIA GPUs, of those in CUDA_VISIBLE_DEVICES where it is set."""
    try:
        told = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines() if line.count(",") == 3]
    known = [row for row in rows if all(re.fullmatch(r"[\d.]+", number) for number in row[2:])]  # not [N/A]
    gpus = [Gpu(uuid, index, float(free), float(total)) for uuid, index, free, total in known]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return gpus
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    return [gpu for gpu in gpus if any(gpu.index == name or gpu.uuid.startswith(name) for name in names)]
