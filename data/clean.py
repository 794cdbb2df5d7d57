"""Cleaning: one repair after another, each reporting whether it changed the text; and duplicate detection.

    mojibake   text that was decoded as the wrong encoding is decoded again (ftfy): â€œ becomes “
    unicode    Unicode's composed form (NFC), so that é is one character everywhere
    control    line ends become \\n, control characters other than \\n and tab are dropped

On plain ASCII only the last rule can apply, so most English documents cost one search. Which documents are too
short is decided in data/encode.py; duplicates are found by the writer (data/prepare.py), which sees the documents in
order.
"""

import re
import unicodedata

import numpy as np

RULES = ("mojibake", "unicode", "control")

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")

# The UTF-8 bytes of ” are E2 80 9D. Windows-1252, as which they are often read, has no character 9D, so many
# programs dropped it. "â€" that no character of the range 80-BF follows has lost just that one.
_CONTINUATION = "".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0))
LOST_QUOTE = re.compile(f"â€(?![{re.escape(_CONTINUATION)}\x80-\x9f])")


def clean(text: str) -> tuple[str, list[str]]:
    """Return the repaired text, and the names of the rules that changed it.

    >>> clean("â€œHelloâ€ said Tom\\x07.")
    ('“Hello” said Tom.', ['mojibake', 'control'])
    """
    if text.isascii() and not CONTROL.search(text):
        return text, []
    applied = []
    for rule, repair in zip(RULES, (fix_mojibake, compose, drop_control), strict=True):
        if (repaired := repair(text)) != text:
            applied.append(rule)
            text = repaired
    return text, applied


def fix_mojibake(text: str) -> str:
    """Decode text again that was decoded as the wrong encoding; ftfy finds the right one, and is imported here.

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
    """Return the text in normalization form C."""
    return unicodedata.normalize("NFC", text)


def drop_control(text: str) -> str:
    """Turn line ends into \\n; remove control characters other than the tab, and byte order marks."""
    return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


class SeenHashes:
    """A growing set of uint64 at 8 bytes each: sorted runs, each more than twice as long as the next.

    With 64 bits, the chance that any two of ten million different documents are taken for duplicates is 3 in a
    million.
    """

    def __init__(self, hashes: np.ndarray | None = None) -> None:
        """Start with the `hashes` (N,) that were seen before."""
        self._runs: list[np.ndarray] = []
        if hashes is not None and len(hashes):
            self._runs.append(np.sort(hashes))

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add (N,) uint64; return (N,) bool: True at the first occurrence of a hash.

        >>> SeenHashes().add(np.array([7, 8, 7], np.uint64)).tolist()
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
