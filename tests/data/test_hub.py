"""A dataset of the hub, from a hub that the test runs itself: asked once, then read from the cache."""

import subprocess
import sys

import pytest

from data.tokenfile import read_meta
from tests.hub import hub

FILES = {
    "README.md": b"---\n{}\n---\n",
    "train.jsonl": b"".join(b'{"text": "Tale number %d of the hub."}\n' % i for i in range(300)),
    "validation.jsonl": b"".join(b'{"text": "Kept tale %d."}\n' % i for i in range(30)),
}


@pytest.fixture
def tales(tmp_path):
    with hub("datasets/me/tales", FILES, tmp_path / "cache") as served:
        yield served


def test_a_dataset_is_downloaded_once_and_then_read_from_the_cache(tmp_path, tales, tokenizer_path):
    environment, stop = tales

    def run(source, out, *more):
        words = [
            "--source",
            source,
            "--tokenizer",
            tokenizer_path,
            "--workers",
            "1",
            "--out",
            str(tmp_path / out),
        ]
        command = [sys.executable, "-m", "data", "prepare", *words, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = run("hf:me/tales", "online", "--val-source", "own")
    assert done.returncode == 0, done.stderr
    assert read_meta(tmp_path / "online").documents == {"train": 300, "val": 30}
    stop()
    done = run("hf:me/tales:validation#text", "offline", "--local-files-only", "--val-fraction", "0.3")
    assert done.returncode == 0, done.stderr
    assert sum(read_meta(tmp_path / "offline").documents.values()) == 30
    done = run("hf:me/other", "missing", "--local-files-only")
    assert done.returncode == 2 and done.stderr.startswith("error: cannot load me/other: ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "missing").exists()
