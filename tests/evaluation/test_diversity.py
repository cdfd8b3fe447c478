import math

import numpy as np
import pytest

from raygeo.evaluation.diversity import (
    Answer,
    diversity,
    ead,
    ead_across,
    entropy,
    equations,
    expected_distinct,
)

V = 11


def brute_ead(texts, vocabulary=V):
    """Every window of every text, set by set, in plain arithmetic."""
    found = []
    for n in range(1, 6):
        windows = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
        if windows:
            chance = vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** len(windows))
            found.append(len(set(windows)) / chance)
    return float(np.mean(found)) if found else None


def drawn(problems, samples, seed=0, longest=9):
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(0, V, size=rng.integers(1, longest)).tolist() for _ in range(samples)] for _ in range(problems)
    ]


def test_distinct_n_grams_by_hand_and_by_brute_force():
    assert ead([[1, 1, 1]], 2) == pytest.approx(np.mean([1 / 1.75, 1 / 1.5, 1 / 1.0]))
    for texts in drawn(20, 4):
        assert ead(texts, V) == pytest.approx(brute_ead(texts), rel=1e-12)
    assert ead([[], []], V) is None
    assert ead([[3], [3]], V) == pytest.approx(1 / (V * (1 - (10 / 11) ** 2)))


def test_no_n_gram_spans_two_texts():
    assert ead([[1, 2], [3, 4]], V) != ead([[1, 2, 3, 4]], V)


@pytest.mark.parametrize("count", [5, 50, 500])
def test_independent_tokens_are_as_distinct_as_expected_whatever_their_number(count):
    rng = np.random.default_rng(count)
    found = [len(set(rng.integers(0, 30, count).tolist())) / expected_distinct(30, count) for _ in range(3000)]
    assert np.mean(found) == pytest.approx(1, abs=0.005)


def test_across_inputs_is_the_mean_over_samples_with_the_jackknife():
    problems = drawn(7, 3, seed=1)
    value, low, high = ead_across(problems, V)

    def across(of):
        return np.mean([brute_ead([texts[sample] for texts in of]) for sample in range(3)])

    left = np.array([across(problems[:i] + problems[i + 1 :]) for i in range(7)])
    error = math.sqrt(6 / 7 * ((left - left.mean()) ** 2).sum())
    assert value == pytest.approx(across(problems), rel=1e-12)
    assert (low, high) == pytest.approx((value - 2.446912 * error, value + 2.446912 * error), rel=1e-5)
    assert ead_across(problems[:2], V)[1:] == (None, None)


def test_entropy_of_shares():
    assert entropy("aabb") == pytest.approx(math.log(2))
    assert entropy([None, None]) == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("first 42 + 12 = 54 . then 54 - 12 = 42", {"42+12=54", "54-12=42"}),
        ("That is 1,200 × 3 = $3,600.00 in all", {"1200*3=3600"}),
        ("<<48/2=24>>24 clips", {"48/2=24"}),
        (r"$2 \times (3 + 4) = 14$", {"2*(3+4)=14"}),
        ("5 x 2 = 10 and 5*2=10", {"5*2=10"}),
        ("in 2 days 3 + 4 = 7", {"3+4=7"}),
        ("x = 7, y=8 and 9 = 9", set()),
        ("0.50 + 0.25 = 0.75", {"0.5+0.25=0.75"}),
    ],
)
def test_equations_whatever_they_are_written_like(text, found):
    assert equations(text) == found


def test_diversity_of_problems_by_hand():
    same = [Answer("1 + 1 = 2", [1, 2, 3], "2")] * 4
    texts = ("1 + 1 = 2", "2 + 0 = 2", "none", "1 + 1 = 2")
    finals = ("2", "3", None, "2")
    unlike = [Answer(t, [i, i + 1], f) for i, (t, f) in enumerate(zip(texts, finals, strict=True))]
    found = diversity([same, unlike], V, resamples=200, seed=0)
    assert found["distinct_answers"].value == (1 + 2) / 2
    assert found["distinct_equations"].value == (1 + 2) / 2
    assert found["answer_entropy"].value == pytest.approx((0 + 1.5 * math.log(2)) / 2)
    expected = np.mean([brute_ead([a.tokens for a in answers]) for answers in (same, unlike)])
    assert found["ead_per_input"].value == pytest.approx(expected)
    assert found["distinct_answers"].low == 1
    assert found["distinct_answers"].high == 2
