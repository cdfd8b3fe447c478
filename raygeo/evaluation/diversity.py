"""How different the answers are that a model gives to one problem, and to different problems.

Kirk et al., arXiv:2310.06452: diversity per input is that of several outputs for one input, averaged over
inputs; across inputs, that of one output for each. Entropy, answers and equations are ours.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

from raygeo.geometry.bootstrap import Array, Interval, percentile_intervals, resampled_means

ORDERS = (1, 2, 3, 4, 5)
"""Lengths of the n-grams that are counted."""


def expected_distinct(vocabulary: int, count: int) -> float:
    """Different values among ``count`` independent draws from ``vocabulary`` equally likely ones, in expectation."""
    return -vocabulary * math.expm1(count * math.log1p(-1 / vocabulary))


def ead(texts: Iterable[Sequence[int]], vocabulary: int) -> float | None:
    """Expectation-adjusted distinct n-grams of some texts together, the mean over n = 1 to 5; None without tokens.

    For each n: different n-grams over ``expected_distinct(vocabulary, n-grams)`` (Liu et al., arXiv:2202.13587; for
    n > 1 with the same vocabulary, as Kirk et al. have it, so that it may exceed 1). No n-gram spans two texts; an n
    that no text is long enough for is left out of the mean. For n = 1 it is 1 in expectation for independent tokens,
    equally likely, whatever their number.
    """
    texts = list(texts)
    found = []
    for n in ORDERS:
        grams = [gram for text in texts for gram in n_grams(text, n)]
        if grams:
            found.append(len(set(grams)) / expected_distinct(vocabulary, len(grams)))
    return sum(found) / len(found) if found else None


def n_grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of ``n`` tokens, in order."""
    return list(zip(*(text[start:] for start in range(n)), strict=False))


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval, None where there is none."""

    value: float | None
    low: float | None
    high: float | None


def ead_across(problems: Sequence[Sequence[Sequence[int]]], vocabulary: int) -> Estimate:
    """``ead`` of one text a problem, the mean over which of k it is: [N][k] texts.

    The interval is Student's with the jackknife's standard error, leaving out one problem at a time (Efron and
    Tibshirani 1993, chapter 11): drawing problems with replacement would repeat texts and take their n-grams for less
    diverse than they are.
    """
    values = [_across([texts[sample] for texts in problems], vocabulary) for sample in range(len(problems[0]))]
    whole = [found for found, _ in values if found is not None]
    if not whole:
        return Estimate(None, None, None)
    value, n = sum(whole) / len(whole), len(problems)
    without = np.mean([left for found, left in values if found is not None], axis=0)
    if n < 3 or not np.isfinite(without).all():
        return Estimate(value, None, None)
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    reach = float(student_t.ppf(0.975, n - 1)) * error
    return Estimate(value, value - reach, value + reach)


def _across(texts: Sequence[Sequence[int]], vocabulary: int) -> tuple[float | None, Array]:
    """``ead``, and what it is without each text [N]."""
    found, without = [], []
    for n in ORDERS:
        owners: dict[tuple[int, ...], int] = {}
        own = np.array([max(0, len(text) - n + 1) for text in texts])
        for place, text in enumerate(texts):
            for gram in n_grams(text, n):
                owners[gram] = place if owners.get(gram, place) == place else -1
        if not owners:
            continue
        alone = Counter(owners.values())
        left = [len(owners) - alone[place] for place in range(len(texts))]
        total = int(own.sum())
        found.append(len(owners) / expected_distinct(vocabulary, total))
        without.append(
            [
                kept / expected_distinct(vocabulary, total - less) if total > less else math.nan
                for kept, less in zip(left, own.tolist(), strict=True)
            ]
        )
    if not found:
        return None, np.zeros(len(texts))
    return sum(found) / len(found), np.nanmean(without, axis=0)


def entropy(values: Iterable[Hashable]) -> float:
    """Of the shares of different values, in nats: at most the logarithm of their number, and biased downwards."""
    counts = np.array(list(Counter(values).values()), dtype=np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


_SIGNS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"}
_NUMBER = r"\d+(?:\.\d+)?"
_EQUATION = re.compile(rf"(?<![\w.])(\(*-?\(*{_NUMBER}\)*(?:[-+*/]\(*-?{_NUMBER}\)*)+)=(-?{_NUMBER})(?![\w])")


def equations(text: str) -> frozenset[str]:
    """The different equations "numbers and signs = number" in a text, as in Yuan et al. (arXiv:2308.01825), unordered.

    Spaces, thousands separators, currency signs and zeros behind a decimal point make no difference; neither does how a
    product or a quotient is written (``*``, ``x`` between numbers, the signs of multiplication, LaTeX).
    """
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)|[$€£]", "", text)
    text = re.sub(r"(?<=\d)\s*x\s*(?=\d)", "*", text)
    text = re.sub(r"\s*([-+*/=()])\s*", r"\1", text)
    text = re.sub(r"(\d+)\.(\d*?)0*(?!\d)", lambda m: f"{m[1]}.{m[2]}" if m[2] else m[1], text)
    return frozenset(f"{left}={right}" for left, right in _EQUATION.findall(text))


class Answer(NamedTuple):
    """One answer to a problem: its text and tokens, and the final answer that was found in it, None if none was."""

    text: str
    tokens: Sequence[int]
    final: str | None


PER_INPUT, ACROSS, FINALS, EQUATIONS, ENTROPY = (
    "ead_per_input", "ead_across_input", "distinct_answers", "distinct_equations", "answer_entropy",
)  # fmt: skip


def diversity(
    problems: Sequence[Sequence[Answer]], vocabulary: int, *, resamples: int, seed: int
) -> Mapping[str, Estimate]:
    """What answers to N problems, k each, differ in, with intervals clustered by problem.

    ``ead_per_input``: ``ead`` of a problem's k answers, the mean over problems; ``ead_across_input``: ``ead_across``;
    ``distinct_answers``: how many different final answers a problem has, none not being one; ``distinct_equations``:
    how many different sets of equations, the empty one not being one; ``answer_entropy``: that of final answers, none
    being one. All but the second are means over problems, with percentiles of means of resampled problems.
    """
    columns: dict[str, Sequence[float | None]] = {
        PER_INPUT: [ead((a.tokens for a in answers), vocabulary) for answers in problems],
        FINALS: [len({a.final for a in answers} - {None}) for answers in problems],
        EQUATIONS: [len({equations(a.text) for a in answers} - {frozenset()}) for answers in problems],
        ENTROPY: [entropy(a.final for a in answers) for answers in problems],
    }
    found = {name: _mean(values, resamples, seed) for name, values in columns.items()}
    return found | {ACROSS: ead_across([[a.tokens for a in answers] for answers in problems], vocabulary)}


def _mean(values: Sequence[float | None], resamples: int, seed: int) -> Estimate:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return Estimate(None, None, None)
    drawn = resampled_means(known, np.ones(len(known)), resamples=resamples, seed=seed)
    interval: Interval = percentile_intervals(drawn[:, None], len(known))[0]
    return Estimate(float(known.mean()), interval.low, interval.high)
