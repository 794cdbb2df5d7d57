"""python -m evaluation, as a user runs it on a run of twenty steps."""

import json
import math
import shutil

import pytest

from bpe import train
from data.stories import coherence
from data.tokenfile import sha256
from evaluation import suite as assessment
from evaluation.__main__ import main
from inference.text import TextModel
from model.generate import Rules


@pytest.fixture(scope="module")
def evaluated(babble):
    main([str(babble), "--pairs", "4", "--samples", "6"])
    return json.loads((babble / "evaluation.json").read_text())


def test_the_likelihood_is_that_of_the_runs_own_report(babble, evaluated):
    report = json.loads((babble / "report.json").read_text())
    assert evaluated["figures"]["nats per token"] == pytest.approx(report["val_loss"], rel=1e-4)
    assert evaluated["figures"]["bits per byte"] == pytest.approx(report["bits_per_byte"], rel=1e-4)
    assert evaluated["figures"]["perplexity"] == pytest.approx(math.exp(report["val_loss"]), rel=1e-3)


def test_all_figures_are_there_and_shares_are_shares(evaluated):
    figures = evaluated["figures"]
    kinds = ("agreement", "article", "tense", "pronoun", "reference", "word order", "selection", "all")
    shares = [*(f"pairs: {kind}" for kind in kinds), "coherence", "distinct-1", "distinct-2", "distinct-3"]
    for name in [*shares, "repetition", "longest copy, share"]:
        assert 0 <= figures[name] <= 1, name
    assert len(evaluated["stories"]) == 5
    assert all(verdict["good"] <= verdict["bad"] for verdict in evaluated["failed_pairs"])


def test_samples_are_stories_of_different_seeds(babble):
    text_model = TextModel.load(babble, "cpu")
    rows = assessment.sample(text_model, 40, Rules(temperature=0.7), seed=3)
    assert len(rows) == 40 and len(set(map(tuple, rows))) > 30
    assert rows[35:] == assessment.sample(text_model, 5, Rules(temperature=0.7), seed=38)
    assert coherence([text_model.tokenizer.decode(ids) for ids in rows]) < 1


def test_the_page_escapes_what_a_model_says():
    pair = {"kind": "<b>", "good": "a <script>", "bad": "a </td>"}
    found = assessment.Assessment(
        {"pairs: <i>": 1.0}, [{"pair": pair, "good": -2.0, "bad": -1.0}], ["<script>x</script>"]
    )
    page = assessment.html_page("run & <run>", found)
    for word in ("<script>", "<b>", "<i>", "<run>", "a </td>"):
        assert word not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (["--pairs", "0"], "pairs is 0"),
        (["--samples", "0"], "samples is 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--seed", str(2**64)], "seed is 18446744073709551616"),
        (["--pairs-file", "no/such.tsv"], "no/such.tsv"),
        (["--data", "no/such"], "no/such"),
    ],
)
def test_a_mistake_is_one_line(babble, refused, flags, complaint):
    assert complaint in refused(main, str(babble), *flags)


def test_a_directory_that_is_no_run_is_named(refused, tmp_path):
    assert "holds no trained model" in refused(main, str(tmp_path))


def test_data_of_another_tokenizer_is_refused(babble, refused, tmp_path, corpus):
    shutil.copytree(corpus, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    train(["once upon a time"] * 9, 260, progress=False).save(path)
    meta = json.loads((tmp_path / "other" / "meta.json").read_text())
    meta["tokenizer_sha256"] = sha256(path)
    (tmp_path / "other" / "meta.json").write_text(json.dumps(meta))
    assert "different tokenizers" in refused(main, str(babble), "--data", str(tmp_path / "other"))


def test_a_checkpoint_of_a_run_is_evaluated_with_the_runs_tokenizer_and_data(babble, evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(babble, run)
    main([str(run / "best"), "--pairs", "4", "--samples", "6"])
    figures = json.loads((run / "best" / "evaluation.json").read_text())["figures"]
    assert figures == evaluated["figures"]


def test_weights_that_are_no_run_are_named(babble, refused, tmp_path):
    shutil.copytree(babble / "best", tmp_path / "weights")
    shutil.copy(babble / "tokenizer.json", tmp_path / "weights")
    assert "is no run of train.py" in refused(main, str(tmp_path / "weights"))


def test_a_model_of_other_text_is_not_asked_for_the_built_in_stories(babble, corpus, tmp_path):
    data = shutil.copytree(corpus, tmp_path / "data")
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps(meta | {"source": ["text:plays.txt"]}))
    plain = assessment.assess(assessment.Evaluate(babble, data=data, samples=2, pairs=2)).figures
    assert "coherence" not in plain and not [name for name in plain if name.startswith("pairs")]
    own = tmp_path / "pairs.tsv"
    own.write_text("thou\tthou art\tthou is\n")
    found = assessment.assess(assessment.Evaluate(babble, data=data, samples=2, pairs_file=own)).figures
    assert {name for name in found if name.startswith("pairs")} == {"pairs: thou", "pairs: all"}
