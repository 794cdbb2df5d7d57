"""A classifier of texts: hashed word n-grams and logistic regression, what fastText does without its hidden layer.

    words and pairs of words  ->  hashed to one of 2^18 places, weighted 1 / sqrt(count of all)  ->  a weight each,
    summed  ->  logit

Trained by AdaGrad on sparse gradients, example by example in a shuffled order. A logit is no probability that can be
trusted, so on a fifth of the examples, which training did not see, two numbers are fitted (Platt, 1999): p =
sigmoid(a · logit + b). On the same fifth precision and recall are reported for each threshold, and how far predicted
and observed frequencies are apart.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from common import files, plots
from data.splitting import text_hash
from data.web import minhash
from data.web.text import Text

BUCKETS = 1 << 18
ORDERS = (1, 2)  # words in a feature
EPOCHS = 10
RATE = 2.0
HELD_OUT = 5  # every fifth example
THRESHOLDS = np.linspace(0.05, 0.95, 19)
CHARACTERS = 20_000  # of a text that are looked at


def features(text: str) -> np.ndarray:
    """Return (F,) int64 places of all words and pairs of words."""
    found = [minhash.shingles([text[:CHARACTERS]], n)[0] % np.uint64(BUCKETS) for n in ORDERS]
    return np.concatenate(found).astype(np.int64)


def sigmoid(logit: np.ndarray | float) -> np.ndarray:
    """Return 1 / (1 + exp(-logit)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logit, np.float64)))


@dataclasses.dataclass(frozen=True)
class HashedClassifier:
    """Weights (BUCKETS,) float32, a bias, and the two numbers of the calibration; `label` names what is positive."""

    label: str
    weights: np.ndarray
    bias: float = 0.0
    slope: float = 1.0
    shift: float = 0.0

    def logit(self, text: str) -> float:
        """Return the sum of weights before calibration; 0 features leave the bias."""
        places = features(text)
        return float(self.weights[places].sum() / np.sqrt(max(len(places), 1)) + self.bias)

    def probability(self, text: str) -> float:
        """Return the calibrated probability that a text has the label."""
        return float(sigmoid(self.slope * self.logit(text) + self.shift))

    def probability_of(self, text: Text) -> float:
        """Return the same for the text of a rule."""
        return self.probability(text.text)

    def save(self, path: str | Path) -> None:
        """Write the model as safetensors, its label in the metadata."""
        numbers = np.array([self.bias, self.slope, self.shift])
        with files.atomic(path) as file:
            Path(file.name).parent.mkdir(parents=True, exist_ok=True)
            save_file({"weights": self.weights, "numbers": numbers}, file.name, {"label": self.label})

    @classmethod
    def load(cls, path: str | Path) -> "HashedClassifier":
        """Read what `save` wrote; ValueError for another file."""
        try:
            with safe_open(path, "numpy") as file:
                numbers = file.get_tensor("numbers").tolist()
                return cls(file.metadata()["label"], file.get_tensor("weights"), *numbers)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no classifier ({error}): train one by python -m data web classifier train"
            ) from error


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well a classifier does on examples it has not seen: at each threshold precision and recall; and its
    calibration.
    """

    examples: int
    accuracy: float  # at 0.5
    precision: list[float]
    recall: list[float]
    calibration_error: (
        float  # mean distance of predicted and observed frequency over ten bins, weighted by examples
    )


def train(
    positive: Sequence[str], negative: Sequence[str], label: str, seed: int = 0
) -> tuple[HashedClassifier, Quality]:
    """Train on texts with and without a label; return the model and its quality on those held out.

    A text's hash decides whether it is held out, so that copies of one text are on one side. ValueError if one side
    is empty.
    """
    examples = dict.fromkeys(positive, 1.0) | dict.fromkeys(negative, 0.0)
    held = {text: target for text, target in examples.items() if text_hash(text.encode()) % HELD_OUT == 0}
    rest = {text: target for text, target in examples.items() if text not in held}
    for name, group in (("train on", rest), ("measure with", held)):
        if len(set(group.values())) < 2:
            raise ValueError(
                f"too few texts to {name}: give at least a few dozen different ones of each kind"
            )
    model = fit([features(text) for text in rest], np.array([*rest.values()]), label, seed)
    logits = np.array([model.logit(text) for text in held])
    targets = np.array([*held.values()])
    slope, shift = calibrate(logits, targets)
    model = dataclasses.replace(model, slope=slope, shift=shift)
    return model, measure(sigmoid(slope * logits + shift), targets)


def fit(places: list[np.ndarray], targets: np.ndarray, label: str, seed: int) -> HashedClassifier:
    """Minimize the logistic loss by AdaGrad, a step for each example; both kinds weigh the same in all."""
    weights, squares = np.zeros(BUCKETS), np.full(BUCKETS, 1e-8)
    bias, square = 0.0, 1e-8
    share = targets.mean()
    draw = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for number in draw.permutation(len(places)):
            own, target = places[number], targets[number]
            scale = 1 / np.sqrt(max(len(own), 1))
            error = float(sigmoid(weights[own].sum() * scale + bias)) - target
            error *= 0.5 / (share if target else 1 - share)
            unique, counts = np.unique(own, return_counts=True)
            gradient = error * scale * counts
            squares[unique] += gradient**2
            # AdaGrad takes the scale out of a gradient; it is put back, so that a text moves its logit by about RATE.
            weights[unique] -= RATE * gradient / np.sqrt(squares[unique]) * scale
            square += error**2
            bias -= RATE * error / np.sqrt(square)
    return HashedClassifier(label, weights.astype(np.float32), bias)


def calibrate(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Return slope and shift of the likeliest sigmoid(slope · logit + shift), by Newton's method.

    Targets are pulled towards the middle by one example of each kind (Platt), so that kinds that are fully apart have
    an answer.
    """
    ones, zeros = targets.sum(), (1 - targets).sum()
    smooth = np.where(targets > 0, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    inputs = np.stack([logits, np.ones_like(logits)], 1)  # (N, 2)
    numbers = np.zeros(2)
    for _ in range(100):
        predicted = sigmoid(inputs @ numbers)
        gradient = inputs.T @ (predicted - smooth)
        curvature = (inputs * (predicted * (1 - predicted))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        numbers -= step * min(1.0, 5 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return float(numbers[0]), float(numbers[1])


def measure(probabilities: np.ndarray, targets: np.ndarray) -> Quality:
    """Return precision and recall at THRESHOLDS and the calibration error."""
    precision, recall = [], []
    for threshold in THRESHOLDS:
        chosen = probabilities >= threshold
        hits = float((targets * chosen).sum())
        precision.append(hits / chosen.sum() if chosen.any() else 1.0)
        recall.append(hits / targets.sum())
    bins = np.minimum((probabilities * 10).astype(int), 9)
    gaps = [
        abs(probabilities[bins == bin].mean() - targets[bins == bin].mean()) * (bins == bin).mean()
        for bin in set(bins)
    ]
    accuracy = float(((probabilities >= 0.5) == targets).mean())
    return Quality(len(targets), accuracy, precision, recall, float(sum(gaps)))


def draw(quality: Quality, path: str | Path) -> None:
    """Save a plot of precision and recall against the threshold."""
    picture = plots.figure(5, 3.2)
    axes = picture.subplots()
    axes.plot(THRESHOLDS, quality.precision, label="precision")
    axes.plot(THRESHOLDS, quality.recall, label="recall")
    axes.set(xlabel="threshold", ylabel=f"of {quality.examples:,} held-out texts", ylim=(0, 1.02))
    axes.legend()
    plots.save(picture, path)
