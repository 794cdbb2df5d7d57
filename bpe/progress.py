"""Progress bars of training, on a terminal only."""

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = Callable[
    [int, int | None], None
]  # called with what is done and the total, None where it is not known


def no_progress(done: int, total: int | None) -> None:
    """Shows nothing."""


class Bars:
    """A bar per step of the work, or none where there is no terminal."""

    def __init__(self, display=None) -> None:
        self.display = display

    def update(self, step: str) -> Progress:
        """A function that moves the bar named `step`."""
        if self.display is None:
            return no_progress
        task = self.display.add_task(step, total=None)
        return lambda done, total: self.display.update(task, completed=done, total=total)


@contextlib.contextmanager
def progress_bars(wanted: bool) -> Iterator[Bars]:
    """Bars on standard error while the block runs, where they are wanted and it is a terminal."""
    if not (wanted and sys.stderr is not None and sys.stderr.isatty()):
        yield Bars()
        return
    from rich.console import Console
    from rich.progress import Progress as Display

    with Display(console=Console(stderr=True), transient=True) as display:
        yield Bars(display)
