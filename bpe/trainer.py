"""Counts of pre-tokens to merges: the training half of byte-pair encoding (Sennrich et al. 2016, on bytes
as in GPT-2).

`train` of basics/bpe.py, made fast: there a step counts every pair of the corpus; here a step touches only the words
that hold the merged pair, and only its neighbours change their counts. If counts are equal, the lexicographically
greatest pair of byte strings is merged, so the result depends on nothing but the counts.
"""

import contextlib
import heapq
import logging
import operator
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from bpe.counting import Progress, Source, count_pretokens, no_progress
from bpe.formats import to_text
from bpe.merging import Merge
from bpe.pretokenize import END_OF_TEXT, Pattern
from bpe.tokenizer import Tokenizer
from bpe.vocabulary import Vocabulary, check_names

logger = logging.getLogger("bpe")


def train(
    source: Source,
    vocab_size: int,
    *,
    pattern: str | Pattern = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    num_workers: int | None = None,
    max_bytes: int | None = None,
    progress: bool = True,
    end_of_text: str | None = None,
) -> Tokenizer:
    """Learn a tokenizer of `vocab_size` ids: 256 bytes, the merges, the special tokens.

    `source` is a path (str or pathlib.Path), several paths (pathlib.Path), or an iterable of texts.
    `pattern` is a name (pretokenize.PATTERNS) or a regular expression. `max_bytes` trains on that many bytes
    from the beginning of the source. With `num_workers` None all cores are used if the corpus is large enough. The
    result does not depend on the number of workers. If the corpus runs out of pairs the vocabulary stays
    smaller, and a warning says so. Raises a ValueError for an impossible vocabulary size or pattern, for an empty
    corpus and for files that are not text, a FileNotFoundError for a path that is not a file.

    >>> train(["low low low lower lowest"], 260, progress=False).merges
    [(b'o', b'w'), (b'l', b'ow'), (b' ', b'low')]
    """
    check_names(special_tokens)
    _check_spelling(special_tokens)
    n_merges = vocab_size - 256 - len(special_tokens)
    if vocab_size > sys.maxunicode:
        raise ValueError(f"vocab_size is {vocab_size:,}: at most {sys.maxunicode:,} ids can be learnt")
    if n_merges < 0:
        raise ValueError(
            f"vocab_size is {vocab_size}: 256 bytes and {len(special_tokens)} special tokens need at least "
            f"{256 + len(special_tokens)}"
        )
    pattern = Pattern.of(pattern)
    Vocabulary([], special_tokens, pattern, end_of_text=end_of_text)  # refuses wrong settings before the work
    with progress_bars(progress) as bars:
        counts = count_pretokens(
            source,
            pattern,
            special_tokens,
            num_workers=num_workers,
            max_bytes=max_bytes,
            on_progress=bars.update("counting"),
        )
        if not counts:
            raise ValueError("the corpus is empty: there is nothing to learn from")
        merges = learn_merges(counts, n_merges, bars.update("merging"))
    if len(merges) < n_merges:
        logger.warning(
            "the corpus is too small for %d ids: no pair is left after %d merges, so there are %d ids",
            vocab_size,
            len(merges),
            256 + len(merges) + len(special_tokens),
        )
    return Tokenizer(merges, special_tokens, pattern, end_of_text=end_of_text)


def _check_spelling(special_tokens: Sequence[str]) -> None:
    """Raise a ValueError, before training, for names with which the tokenizer could not be saved."""
    bytes_spelled = {to_text(bytes([byte])) for byte in range(256)}
    for name in special_tokens:
        if name in bytes_spelled:
            raise ValueError(
                f"the special token {name!r} is spelled like the token of a byte: give it another name"
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the special token {name!r} is not valid Unicode: give it another name"
            ) from error


def learn_merges(
    counts: Mapping[bytes, int], n_merges: int, on_progress: Progress = no_progress
) -> list[Merge]:
    """Return the first `n_merges` merges for pre-tokens with these counts; fewer if no pair is left.

    >>> learn_merges({b"hug": 10, b"pug": 5, b"hugs": 5}, 2)
    [(b'u', b'g'), (b'h', b'ug')]
    """
    table = _PairTable(counts)
    merges: list[Merge] = []
    while len(merges) < n_merges and (pair := table.most_frequent()) is not None:
        left, right = map(ord, pair)
        merges.append((table.tokens[left], table.tokens[right]))
        table.merge(pair)
        if len(merges) % 100 == 0:
            on_progress(len(merges), n_merges)
    return merges


class _PairTable:
    """The words, how often each pair occurs in them, and which words hold it.

    A word is a string with one character per token, whose code is the id, and a pair is a string of two: searching
    and replacing are then the string methods of Python.
    """

    def __init__(self, counts: Mapping[bytes, int]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.order = [_descending(token) for token in self.tokens]
        self.words = [word.decode("latin-1") for word in counts if len(word) > 1]
        self.word_counts = [count for word, count in counts.items() if len(word) > 1]
        self.holders: defaultdict[str, list[int]] = defaultdict(
            list
        )  # a word is named as often as it has the pair
        for index, word in enumerate(self.words):
            for pair in map(operator.add, word, word[1:]):
                self.holders[pair].append(index)
        self.counts = defaultdict(int, {pair: self._total(held) for pair, held in self.holders.items()})
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

    def _entry(self, pair: str) -> tuple[int, str, str, str]:
        return -self.counts[pair], self.order[ord(pair[0])], self.order[ord(pair[1])], pair

    def _total(self, held: list[int]) -> int:
        return sum(map(self.word_counts.__getitem__, held))

    def most_frequent(self) -> str | None:
        """Return the pair to merge next. The heap is lazy: an entry with an old count is put back or dropped."""
        while self.heap:
            entry = heapq.heappop(self.heap)
            pair = entry[-1]
            count = self.counts.get(pair, 0)
            if count == -entry[0]:
                return pair
            if count > 0:
                heapq.heappush(self.heap, self._entry(pair))
        return None

    def merge(self, pair: str) -> None:
        """Make a new token of `pair`, in every word that holds it."""
        left, right = pair
        new = chr(len(self.tokens))
        self.tokens.append(self.tokens[ord(left)] + self.tokens[ord(right)])
        self.order.append(_descending(self.tokens[-1]))
        before: defaultdict[str, list[int]] = defaultdict(
            list
        )  # the words with this token before the new one
        after: defaultdict[str, list[int]] = defaultdict(list)
        words = self.words
        for index in self.holders.pop(pair):
            word = words[index]
            place = word.find(pair)  # -1 if another merge has taken the pair apart
            while place >= 0:
                if place:
                    before[word[place - 1]].append(index)
                if place + 2 < len(word):
                    after[word[place + 2]].append(index)
                word = word[:place] + new + word[place + 2 :]
                place = word.find(pair, place + 1)
            words[index] = word
        changes: defaultdict[str, int] = defaultdict(int)
        exchanged = [(token + left, token + new, held) for token, held in before.items()]
        exchanged += [(right + token, new + token, held) for token, held in after.items()]
        for old, entering, held in exchanged:
            total = self._total(held)
            changes[old] -= total
            changes[entering] += total
            self.holders[entering] += held
        self._apply(changes, new)
        self.counts.pop(pair, None)

    def _apply(self, changes: Mapping[str, int], new: str) -> None:
        """Change the counts, and enter the pairs with the token `new` into the heap."""
        for changed, difference in changes.items():
            self.counts[changed] += difference
            if self.counts[changed] <= 0:
                del self.counts[changed]
                self.holders.pop(changed, None)
            elif new in changed:
                heapq.heappush(self.heap, self._entry(changed))


_DESCENDING = str.maketrans({byte: 255 - byte for byte in range(256)})


def _descending(token: bytes) -> str:
    """Return a key that sorts greater byte strings first; the mark at its end puts "ab" before its prefix "a"."""
    return token.decode("latin-1").translate(_DESCENDING) + "\u0100"


class Bars:
    """A progress bar per step of the work, or none if there is no terminal."""

    def __init__(self, display=None) -> None:
        self.display = display

    def update(self, step: str) -> Progress:
        """Return a function that moves the bar named `step`."""
        if self.display is None:
            return no_progress
        task = self.display.add_task(step, total=None)
        return lambda done, total: self.display.update(task, completed=done, total=total)


@contextlib.contextmanager
def progress_bars(wanted: bool) -> Iterator[Bars]:
    """Show bars on standard error while the block runs, if they are wanted and it is a terminal."""
    if not (wanted and sys.stderr is not None and sys.stderr.isatty()):
        yield Bars()
        return
    from rich.console import Console
    from rich.progress import Progress as Display

    with Display(console=Console(stderr=True), transient=True) as display:
        yield Bars(display)
