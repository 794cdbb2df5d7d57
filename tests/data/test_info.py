"""Info counts what is there, against Python's own counting."""

import collections

import numpy as np
import pytest

from bpe import Tokenizer
from data.__main__ import main
from data.info import histogram, ranked, read_info
from data.prepare import Prepare, prepare
from data.tokenfile import TokenFile


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_path):
    out = tmp_path_factory.mktemp("info")
    prepare(Prepare(out=out, stories_bytes=60_000, tokenizer=tokenizer_path))
    return out


def test_counts(folder):
    info, tokens = read_info(folder, "train"), TokenFile.open(folder, "train").tokens.tolist()
    counts = collections.Counter(tokens)
    assert info.counts.tolist() == [counts[id] for id in range(info.meta.vocab_size)]
    assert info.unused == info.meta.vocab_size - len(counts)
    most, least = ranked(info, 10)
    assert [counts[id] for id in most] == [count for _, count in counts.most_common(10)]
    assert [counts[id] for id in least] == sorted(counts.values())[:10]


def test_lengths_and_sample(folder):
    info, tokens = read_info(folder, "val"), TokenFile.open(folder, "val").tokens.tolist()
    text = Tokenizer.load(folder / "tokenizer.json").decode(tokens)
    end = info.meta.end_of_text
    lengths = [len(part.split()) + 1 for part in " ".join(map(str, tokens)).split(f"{end}")[:-1]]
    assert info.lengths.tolist() == lengths and len(lengths) == info.meta.documents["val"]
    assert info.sample in text and len(info.sample) > 50


def test_histogram_against_a_loop():
    lengths = np.random.default_rng(0).integers(3, 5000, 1000)
    for shortest, longest, count in histogram(lengths):
        assert count == sum(shortest <= length <= longest for length in lengths)
    assert sum(count for _, _, count in histogram(lengths)) == 1000


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_command_prints_and_draws(folder, tmp_path, capsys, ending):
    main(["info", str(folder), "--plot", str(tmp_path / f"out.{ending}"), "--top", "3"])
    printed = capsys.readouterr().out
    for words in ("lengths of documents", "most used", "'.'", "bytes", "from the middle"):
        assert words in printed
    start = (tmp_path / f"out.{ending}").read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if ending == "png" else start.startswith(b"<?xml")


def test_a_plot_of_no_known_kind_and_a_missing_folder_are_refused(folder, tmp_path, refused):
    assert "should end in one of" in refused(main, "info", str(folder), "--plot", str(tmp_path / "out.doc"))
    assert "meta.json is missing" in refused(main, "info", str(tmp_path))
