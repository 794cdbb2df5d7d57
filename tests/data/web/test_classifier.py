"""The classifier tells spam from prose, its calibration is Platt's, and its files are checked."""

import os

import numpy as np
import pytest

from benchmarks import web_classifier
from data.stories import stories
from data.web import classifier
from data.web.__main__ import main
from data.web.classifier import HashedClassifier
from data.web.synthetic import web

PAGES = web(300, seed=7)
SPAM = [page.text for page in PAGES if page.kind in ("spam", "menu")]
GOOD = [page.text for page in PAGES if page.kind in ("good", "table")]


def test_spam_is_told_from_prose(tmp_path):
    model, quality = classifier.train(GOOD, SPAM, "quality")
    assert quality.accuracy > 0.97
    assert quality.calibration_error < 0.1
    model.save(tmp_path / "model.safetensors")
    loaded = HashedClassifier.load(tmp_path / "model.safetensors")
    tale = next(stories(99))
    assert loaded.label == "quality"
    assert loaded.probability(tale) == model.probability(tale) > 0.8
    assert model.probability("Buy fast loans now to have the best of fast loans now today.") < 0.5


def test_calibration_finds_the_numbers_that_made_the_targets():
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, 20_000)
    targets = (draw.random(20_000) < classifier.sigmoid(0.7 * logits - 0.4)).astype(float)
    assert classifier.calibrate(logits, targets) == pytest.approx((0.7, -0.4), abs=0.06)
    assert np.isfinite(classifier.calibrate(np.array([-1.0, 1.0]), np.array([0.0, 1.0]))).all()


def test_measures_by_hand():
    quality = classifier.measure(np.array([0.9, 0.8, 0.3, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]))
    at_half = int(np.argmin(np.abs(classifier.THRESHOLDS - 0.5)))
    assert (quality.precision[at_half], quality.recall[at_half], quality.accuracy) == (0.5, 0.5, 0.5)
    assert quality.calibration_error == pytest.approx((0.1 + 0.8 + 0.7 + 0.1) / 4)


def test_command(tmp_path, capsys, refused):
    good, bad, model = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "models" / "q.safetensors"
    for path, texts in ((good, GOOD), (bad, SPAM)):
        path.write_text("".join(f'{{"text": {text!r}}}\n'.replace("'", '"') for text in map(plain, texts)))
    main(
        [
            "classifier",
            "train",
            "--positive",
            str(good),
            "--negative",
            str(bad),
            "--out",
            str(model),
            "--plot",
            str(tmp_path / "p.svg"),
        ]
    )
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    main(["classifier", "score", str(model), "--source", str(bad)])
    scores = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert np.mean(scores) < 0.2
    assert "no classifier" in refused(main, "classifier", "score", str(good), "--source", str(bad))
    few = ["classifier", "train", "--positive", str(good), "--negative", str(good), "--out", str(model)]
    assert "too few texts" in refused(main, *few)


def plain(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum() or letter in " .,")


def test_the_benchmark_tests_with_other_texts_than_it_trains_with():
    train, test = ({*side.positive, *side.negative} for side in web_classifier.made_up_web(300))
    assert min(len(train), len(test)) > 150 and not train & test


@pytest.mark.slow
@pytest.mark.skipif(
    web_classifier.VARIABLE not in os.environ,
    reason=f"{web_classifier.VARIABLE} names no folder with fastText: see benchmarks/web_classifier.py",
)
@pytest.mark.parametrize("name", web_classifier.TASKS)
def test_as_good_as_fasttext(name, tmp_path):
    """Trained and tested on the same documents, the mean of precision and recall is within 2.5 points."""
    task = web_classifier.TASKS[name]()
    found = web_classifier.precision_and_recall(web_classifier.by_ours(task), task.test)
    peer = web_classifier.precision_and_recall(web_classifier.by_fasttext(task, tmp_path), task.test)
    assert np.mean(found) > np.mean(peer) - 0.025
