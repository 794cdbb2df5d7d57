"""Repairs the text of a document: one rule after another, each saying whether it changed anything.

    mojibake   text that was decoded as the wrong encoding is decoded again (ftfy): â€œ becomes “
    unicode    Unicode's composed form (NFC), so that é is one character everywhere
    control    line ends become \\n, control characters other than \\n and tab are dropped

Plain ASCII can only break the last rule, so most English documents cost one search. What is too short or came
before is not decided here but by the writer, which sees the documents in order (data/prepare.py).
"""

import re
import unicodedata

import numpy as np

RULES = ("mojibake", "unicode", "control")

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")

# The UTF-8 bytes of ” are E2 80 9D; Windows-1252, as which they are often read, has no character 9D, so that
# many programs dropped it. "â€" that no character of the range 80-BF follows has lost just that one.
_CONTINUATION = "".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0))
LOST_QUOTE = re.compile(f"â€(?![{re.escape(_CONTINUATION)}\x80-\x9f])")


def clean(text: str) -> tuple[str, list[str]]:
    """The repaired text, and the names of the rules that changed it.

    >>> clean("â€œHelloâ€ said Tom\\x07.")
    ('“Hello” said Tom.', ['mojibake', 'control'])
    """
    if text.isascii() and not CONTROL.search(text):
        return text, []
    broken = []
    for rule, repair in zip(RULES, (fix_mojibake, compose, drop_control), strict=True):
        if (repaired := repair(text)) != text:
            broken.append(rule)
            text = repaired
    return text, broken


def fix_mojibake(text: str) -> str:
    """Text read as the wrong encoding, read again as the right one by ftfy, which is imported here.

    Only ftfy's repair of encodings is used: quotes, ligatures and HTML stay as they are.
    """
    if text.isascii():
        return text
    try:
        import ftfy
    except ImportError as error:
        raise ValueError(f"--clean needs the library ftfy ({error}): pip install ftfy") from error
    return ftfy.fix_encoding(LOST_QUOTE.sub("â€\x9d", text))


def compose(text: str) -> str:
    """Normalization form C."""
    return unicodedata.normalize("NFC", text)


def drop_control(text: str) -> str:
    """Line ends as \\n, no other control character but the tab, no byte order mark."""
    return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


class Seen:
    """A set of uint64 at 8 bytes each: sorted runs, of which each is more than twice as long as the next.

    With 64 bits, ten million different documents have a chance of 3 in a million that any two are taken for one.
    """

    def __init__(self, hashes: np.ndarray | None = None) -> None:
        """Starts with the `hashes` (N,) that were seen already."""
        self._runs: list[np.ndarray] = []
        if hashes is not None and len(hashes):
            self._runs.append(np.sort(hashes))

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Adds (N,) uint64; returns (N,) bool: True where a hash comes for the first time.

        >>> Seen().add(np.array([7, 8, 7], np.uint64)).tolist()
        [True, True, False]
        """
        new = np.zeros(len(hashes), bool)
        new[np.unique(hashes, return_index=True)[1]] = True
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            new &= run[place] != hashes
        if new.any():
            self._runs.append(np.sort(hashes[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return new
