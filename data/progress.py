"""How far a preparation has come: documents, MB/s and the time left, on a terminal."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(num_bytes: int | None, done: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with the bytes read and the documents kept so far.

    `num_bytes` is the size of it all, None if unknown: then no time left is shown. `done` was done before.
    """
    from rich import progress

    columns = (
        *("encoding", progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn()),
        *(
            "{task.fields[documents]:,} documents",
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        ),
    )
    with progress.Progress(*columns) as bars:
        bar = bars.add_task("encoding", total=num_bytes, completed=done, documents=0)

        def update(bytes_read: int, documents: int) -> None:
            bars.update(bar, completed=bytes_read, documents=documents)

        yield update
        if num_bytes is not None:  # the size of the files counts their separators too
            bars.update(bar, completed=num_bytes)
