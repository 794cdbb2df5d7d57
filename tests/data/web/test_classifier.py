"""The classifier tells spam from prose, its calibration is Platt's, and its files are checked."""

import itertools

import numpy as np
import pytest

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


@pytest.mark.slow
def test_as_good_as_fasttext(tmp_path):
    """Stories with their words shuffled against stories: our held-out accuracy is within 3 points of fastText's."""
    fasttext = pytest.importorskip("fasttext")
    if not hasattr(fasttext, "train_supervised"):
        pytest.skip("this fasttext only predicts")
    tales = list(itertools.islice(stories(1), 1500))
    draw = np.random.default_rng(0)
    mixed = [" ".join(draw.permutation(tale.split())) for tale in tales]
    _, quality = classifier.train(tales, mixed, "order")
    rows = [f"__label__{int(kind)} {text}" for kind, texts in enumerate((mixed, tales)) for text in texts]
    draw.shuffle(rows)
    (tmp_path / "train.txt").write_text("\n".join(rows[:2400]))
    (tmp_path / "test.txt").write_text("\n".join(rows[2400:]))
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), wordNgrams=2, epoch=10, verbose=0)
    assert quality.accuracy > model.test(str(tmp_path / "test.txt"))[1] - 0.03
