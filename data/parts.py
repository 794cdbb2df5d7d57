"""The folder in which a preparation is built, part by part: an interruption loses at most one part.

    OUT/.prepare/recipe.json      what is being made: another recipe cannot continue here
    OUT/.prepare/tokenizer.json
    OUT/.prepare/train.bin …      grow by appending
    OUT/.prepare/journal.jsonl    one line for each full part: the files' sizes and the counts so far

A part counts once its line is in the journal, which is written after its bytes have reached the disk. To continue,
the files are cut back to the sizes in the last line. The folder is removed at the end.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from common.files import read_json, write_json

GROWING = ("train.bin", "val.bin", "hashes.bin")
FINISHED = ("train.bin", "val.bin", "tokenizer.json", "meta.json")  # moved in this order: the meta last


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder and keep other processes from preparing in it; the lock ends with the process."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(
            f"another process is preparing {out}: wait for it or choose another --out"
        ) from error
    finally:
        os.close(descriptor)


class Parts:
    """The growing files and their journal; `state` is that of the last full part, None before the first."""

    def __init__(self, out: Path, recipe: dict[str, Any], overwrite: bool) -> None:
        """Begin or continue; ValueError if an unfinished preparation of another recipe is here and must be kept."""
        self.out, self.folder = out, out / ".prepare"
        self.state: dict[str, Any] | None = None
        self._files: dict[str, IO[bytes]] = {}
        kept = self.folder / "recipe.json"
        other = kept.exists() and read_json(kept) != recipe
        if other and self.begun and not overwrite:
            raise ValueError(
                f"{out} holds an unfinished preparation with other options or other files: "
                f"give its command again to finish it, or add --overwrite to drop it"
            )
        if other or (overwrite and not self.complete and self._cut_short()):
            kept.unlink(missing_ok=True)  # first, since without it nothing here counts
        if not kept.exists():
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            write_json(kept, recipe)

    @property
    def begun(self) -> bool:
        """True if there is a full part."""
        return _last_line(self.folder / "journal.jsonl") is not None

    @property
    def complete(self) -> bool:
        """True if the finished files only have to be moved to their place."""
        return (self.folder / "meta.json").exists()

    @contextmanager
    def growing(self) -> Iterator[None]:
        """Open the growing files, cut back to the last full part."""
        journal = self.folder / "journal.jsonl"
        line = _last_line(journal) or {"sizes": dict.fromkeys(GROWING, 0), "state": None, "end": 0}
        self.state = line["state"]
        if cut_short := self._cut_short():
            raise ValueError(f"{cut_short} was cut short by something else: add --overwrite to start again")
        with ExitStack() as closing:
            for name, size in {**line["sizes"], journal.name: line["end"]}.items():
                self._files[name] = closing.enter_context(open(self.folder / name, "ab", buffering=0))
                self._files[name].truncate(size)
            yield

    def _cut_short(self) -> Path | None:
        """Return a growing file that is shorter than the journal says, or None."""
        line = _last_line(self.folder / "journal.jsonl") or {"sizes": {}}
        for name, size in line["sizes"].items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size < size:
                return path
        return None

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Append to a growing file; the OSError for a full disk says how to continue."""
        try:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[self._files[name].write(rest) :]
        except OSError as error:
            raise OSError(
                f"cannot write {self.folder / name} ({error.strerror}): nothing finished is lost; "
                f"make room and give the same command again"
            ) from error

    def commit(self, state: dict[str, Any]) -> None:
        """End a part: when this returns, `state` and everything written survive a crash."""
        for name in GROWING:
            os.fsync(self._files[name].fileno())
        sizes = {name: os.fstat(self._files[name].fileno()).st_size for name in GROWING}
        self.write("journal.jsonl", json.dumps({"sizes": sizes, "state": state}).encode() + b"\n")
        os.fsync(self._files["journal.jsonl"].fileno())
        self.state = state

    def discard_unless_begun(self) -> None:
        """Remove all traces of a preparation that failed before its first full part."""
        if not self.begun:
            shutil.rmtree(self.folder)
            with suppress(OSError):  # not empty: something else is there
                self.out.rmdir()

    def finish(self) -> None:
        """Move the finished files to their place, replacing those of another corpus; can be repeated."""
        if (self.folder / "train.bin").exists():
            (self.out / "meta.json").unlink(missing_ok=True)  # no corpus until the new one is complete
        for name in FINISHED:
            if (self.folder / name).exists():
                os.replace(self.folder / name, self.out / name)
        shutil.rmtree(self.folder)


def _last_line(journal: Path) -> dict[str, Any] | None:
    """Return the last whole line of the journal and its end; a line cut short by a crash does not count."""
    whole, newline, _ = journal.read_bytes().rpartition(b"\n") if journal.exists() else (b"", b"", b"")
    if not newline:
        return None
    return {**json.loads(whole.rpartition(b"\n")[2]), "end": len(whole) + 1}
