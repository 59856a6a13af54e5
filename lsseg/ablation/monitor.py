"""What a terminal shows of a suite while it runs."""

import re

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lsseg.ablation.spec import Run


class Monitor:
    """Live progress: a bar for each run on a terminal, the runs' own lines elsewhere.

    Args:
        runs: The runs to be watched.
        console: Where to show them.
    """

    STEP = re.compile(r"^epoch (\d+) step (\d+)/(\d+) (.*)$")

    def __init__(self, runs: list[Run], console: Console) -> None:
        self.console = console
        self.bars: dict[str, TaskID] = {}
        self.progress: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[last]}"),
            )
            self.progress = Progress(*columns, console=console)
            self.bars = {run.name: self.progress.add_task(run.name, start=False, total=None, last="") for run in runs}

    def __enter__(self) -> "Monitor":
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress:
            self.progress.stop()

    def listen(self, name: str, line: str) -> None:
        """Show a line that a run printed."""
        step = self.STEP.match(line)
        if self.progress is None:
            if step:
                self.console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)
            return
        if not self.progress.tasks[self.bars[name]].started:
            self.progress.start_task(self.bars[name])
        if step:
            done, total, last = int(step[2]), int(step[3]), step[4]
            self.progress.update(self.bars[name], completed=done, total=total, last=last[:60])
