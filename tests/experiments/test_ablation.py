"""python -m experiments ablate: the same report over runs on more and more data."""

import json

import numpy as np
import pytest

from bpe import Tokenizer
from data.batches import TokenFile
from experiments import ablation
from experiments.__main__ import main


def test_truncated_data_keep_whole_documents_and_counts_them(corpus, tmp_path):
    ablation.truncate(corpus, tmp_path / "short", 7)
    whole, short = TokenFile.open(corpus, "train"), TokenFile.open(tmp_path / "short", "train")
    end = short.meta.end_of_text
    assert np.array_equal(short.tokens, whole.tokens[: len(short)])
    assert (short.tokens == end).sum() == 7 == short.meta.documents["train"] and short.tokens[-1] == end
    text = Tokenizer.load(corpus / "tokenizer.json").decode_bytes(
        [id for id in short.tokens.tolist() if id != end]
    )
    assert short.meta.bytes["train"] == len(text)
    assert TokenFile.open(tmp_path / "short", "val").meta.tokens["val"] == whole.meta.tokens["val"]


@pytest.mark.parametrize("word", ["0", "x", "-3", "1.5", "k", "", "inf", "1e400"])
def test_an_odd_number_of_documents_is_named(word):
    with pytest.raises(ValueError, match="docs is"):
        ablation.size(word)


def test_more_documents_than_there_are_is_refused(corpus, refused, tmp_path):
    complaint = refused(main, "ablate", "--docs", "9m", "--data", str(corpus), "--run", str(tmp_path))
    assert "documents to train on, not 9,000,000" in complaint


def test_an_evaluation_that_cannot_be_is_refused_before_training(corpus, refused, tmp_path):
    flags = ["--docs", "5", "--data", str(corpus), "--run", str(tmp_path / "run"), "--samples", "0"]
    assert "samples is 0" in refused(main, "ablate", *flags)
    assert not (tmp_path / "run").exists()


def test_an_ablation_of_nothing_is_refused(refused):
    assert "docs is empty" in refused(main, "ablate", "--docs")


@pytest.mark.slow
def test_an_ablation_puts_runs_side_by_side(corpus, tmp_path):
    flags = ["--steps", "3", "--pairs", "2", "--samples", "2", "--device", "cpu"]
    main(["ablate", "--docs", "5", "20", "--data", str(corpus), "--run", str(tmp_path), *flags])
    figures = json.loads((tmp_path / "ablation.json").read_text())
    assert list(figures) == ["5", "20"] and figures["5"].keys() == figures["20"].keys()
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    assert "20 docs" in (tmp_path / "ablation.html").read_text()
