"""MinHash: shingles by Python's own sets, estimates beside datasketch, the S-curve, pairs of known similarity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.web import minhash

TEXTS = st.lists(st.text(st.sampled_from("ab c.\nÄ—"), max_size=60), max_size=8)


def by_python(text: str, n: int) -> set[bytes]:
    words = minhash.normalized(text).split()
    return {b" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def pair(similarity: float, size: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of hashes, layout of shingles, of just this Jaccard similarity (to 1 / size)."""
    common = round(similarity * size)
    union = draw.choice(1 << 62, size, replace=False).astype(np.uint64) * np.uint64(4) + draw.integers(
        0, 4, size, np.uint64
    )
    middle = common + (size - common) // 2
    left, right = union[:middle], np.concatenate([union[:common], union[middle:]])
    return np.concatenate([left, right]), np.array([0, len(left), len(left) + len(right)])


@given(TEXTS, st.integers(1, 4))
def test_shingles_are_runs_of_words(texts, n):
    hashes, starts = minhash.distinct(*minhash.shingles(texts, n))
    expected = [by_python(text, n) for text in texts]
    assert np.diff(starts).tolist() == [*map(len, expected)]
    known: dict[bytes, int] = {}
    for number, text in enumerate(texts):
        alone = minhash.distinct(*minhash.shingles([text], n))[0]
        assert hashes[starts[number] : starts[number + 1]].tolist() == alone.tolist()
        if len(alone) == 1:
            assert known.setdefault(min(expected[number]), int(alone[0])) == alone[0]
    assert len(set(known.values())) == len(known)


def test_blocks_change_nothing(monkeypatch):
    texts = [f"word{i} and some more words about number {i}" for i in range(50)]
    whole = minhash.shingles(texts)
    monkeypatch.setattr(minhash, "BLOCK", 100)
    for ours, theirs in zip(minhash.shingles(texts), whole, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("signature", [minhash.signatures, minhash.k_permutations])
@pytest.mark.parametrize("size", [40, 600])  # with 40 of 128 bins most are borrowed
def test_estimates_are_right_on_average(signature, size):
    draw = np.random.default_rng(size)
    for similarity in (0.0, 0.3, 0.8, 1.0):
        estimates = []
        for _ in range(60):
            rows = signature(*pair(similarity, size, draw))
            estimates.append((rows[0] == rows[1]).mean())
        error = 3 * np.sqrt(0.25 / min(size, minhash.PERMUTATIONS) / 60) + 0.5 / size
        assert abs(np.mean(estimates) - similarity) < error


def test_error_is_that_of_datasketch():
    datasketch = pytest.importorskip("datasketch")
    draw = np.random.default_rng(0)
    errors: dict[str, list[float]] = {"ours": [], "k": [], "datasketch": []}
    for _ in range(40):
        hashes, starts = pair(0.6, 400, draw)
        ours, plain = minhash.signatures(hashes, starts), minhash.k_permutations(hashes, starts)
        theirs = [datasketch.MinHash(128, seed=int(draw.integers(1 << 31))) for _ in range(1)]
        left = theirs[0]
        right = left.copy()
        left.update_batch([each.tobytes() for each in hashes[: starts[1]]])
        right.update_batch([each.tobytes() for each in hashes[starts[1] :]])
        errors["ours"].append((ours[0] == ours[1]).mean() - 0.6)
        errors["k"].append((plain[0] == plain[1]).mean() - 0.6)
        errors["datasketch"].append(left.jaccard(right) - 0.6)
    spread = {name: np.sqrt(np.mean(np.square(values))) for name, values in errors.items()}
    theory = np.sqrt(0.6 * 0.4 / 128)
    assert all(0.6 * theory < each < 1.5 * theory for each in spread.values()), spread
    assert spread["ours"] < 1.3 * spread["datasketch"]


def test_candidates_follow_the_curve():
    """At nine similarities the fraction of pairs with a common band is 1 - (1 - s^r)^b."""
    bands, rows, trials = 16, 4, 300
    draw = np.random.default_rng(3)
    for similarity in np.arange(1, 10) / 10:
        parts = [pair(similarity, 500, draw) for _ in range(trials)]
        hashes = np.concatenate([part[0] for part in parts])
        starts = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part[1]) for part in parts]))])
        keys = minhash.band_keys(minhash.signatures(hashes, starts, 128), bands, rows)
        found = (keys[::2] == keys[1::2]).any(1).mean()
        expected = minhash.probability(similarity, bands, rows)
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / trials) + 0.02


def test_bands_reach_the_recall_that_is_asked_for():
    for similarity in (0.5, 0.7, 0.9, 1.0):
        bands, rows = minhash.bands_for(similarity, 128, 0.99)
        assert minhash.probability(similarity, bands, rows) >= 0.99
        assert bands * rows <= 128
        if rows < 128:
            assert minhash.probability(similarity, 128 // (rows + 1), rows + 1) < 0.99
    with pytest.raises(ValueError, match="take more permutations"):
        minhash.bands_for(0.1, 4)


def test_nothing_is_like_nothing():
    empty = minhash.signatures(*minhash.shingles(["", "...", "a word"]))
    assert (empty[0] == empty[1]).all()
    assert (empty[0] != empty[2]).all()
