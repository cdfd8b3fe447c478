"""Accuracy with its uncertainty, and paired comparisons of runs that answered the same problems."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from raygeo.errors import DataError
from raygeo.workload import Rows

_DRAWS_AT_ONCE = 1 << 20


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927, https://doi.org/10.2307/2276774)."""
    if not 0 <= correct <= n or n == 0:
        raise DataError(
            f"{correct} correct of {n} answers is no proportion: there must be answers, and not more correct ones"
        )
    low, high = proportion_confint(correct, n, alpha=1 - level, method="wilson")
    return Interval(float(low), float(high))


class McNemar(NamedTuple):
    """A paired comparison of runs A and B on ``n`` problems: who alone is right, and two-sided p-values."""

    n: int
    only_a: int
    only_b: int
    p_exact: float
    p_mid: float


def mcnemar(a: Mapping[str, bool], b: Mapping[str, bool]) -> McNemar:
    """Compare two runs' verdicts, given by problem id.

    ``p_exact`` is the two-sided binomial p-value of the discordant problems at 1/2 (McNemar 1947). ``p_mid`` counts the
    observed outcome half (Fagerland, Lydersen and Laake 2013, https://doi.org/10.1186/1471-2288-13-91), less
    conservative. Without discordant problems both are 1.

    Raises ``DataError`` when the problems are not the same.
    """
    if a.keys() != b.keys():
        differing = sorted(a.keys() ^ b.keys())
        raise DataError(
            f"paired statistics need the same problems, but {len(differing)} of {len(a.keys() | b.keys())} have only "
            f"one of the two answers ({', '.join(differing[:3])}, ...); evaluate both runs on the same benchmark"
        )
    only_a = sum(a[problem] and not b[problem] for problem in a)
    only_b = sum(b[problem] and not a[problem] for problem in a)
    table = [[0, only_a], [only_b, 0]]
    p_exact = float(exact_mcnemar(table, exact=True).pvalue)
    observed = binom.pmf(only_a, only_a + only_b, 0.5)
    if only_a + only_b == 0:
        p_mid = 1.0
    elif only_a == only_b:
        p_mid = float(1 - observed / 2)
    else:
        p_mid = float(p_exact - observed)
    return McNemar(len(a), only_a, only_b, p_exact, p_mid)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of one family of tests, so that a level bounds the family-wise error (Holm 1979)."""
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError(f"p-values must lie between 0 and 1, got {[p for p in p_values if not 0 <= p <= 1][:3]}")
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


class Difference(NamedTuple):
    """Mean of A minus mean of B, its percentile interval, and a two-sided bootstrap p-value of no difference."""

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Bootstrap the difference of two means over the same items, ``a`` [n] and ``b`` [n], resampling items.

    Percentile interval; ``p = 2 min(P(d <= 0), P(d >= 0))`` with one added to both counts and to ``resamples``, so that
    it is never 0 (Davison and Hinkley 1997, sections 5.3 and 4.4). Equal arguments give equal results.

    Raises ``DataError`` when the arrays are empty, differ in length or are not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0 or not np.isfinite(a).all() or not np.isfinite(b).all():
        raise DataError(
            f"a paired bootstrap needs two finite arrays of equal length, got shapes {a.shape} and {b.shape}"
        )
    differences = a - b
    n = len(differences)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        part = means[start : start + step]
        part[:] = differences[generator.integers(n, size=(len(part), n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    return Difference(float(differences.mean()), float(low), float(high), p)


def accuracy_rows(answers: pa.Table) -> Rows:
    """Return rows of the table ``accuracy`` from the table ``answers``: one a run and benchmark, Wilson 95 % intervals.

    ``no_answer`` counts completions without an extracted answer. Raises ``DataError`` on repeated or ungraded answers.
    """
    rows = []
    for (benchmark, run), group in _by_benchmark_and_run(answers).items():
        n, correct = len(group), sum(row["correct"] for row in group.values())
        low, high = wilson(correct, n)
        rows.append(
            {
                "run": run,
                "benchmark": benchmark,
                "n": n,
                "correct": correct,
                "accuracy": correct / n,
                "low": low,
                "high": high,
                "truncated": sum(bool(row["truncated"]) for row in group.values()),
                "no_answer": sum(row["extracted"] is None for row in group.values()),
            }
        )
    return rows


def mcnemar_rows(answers: pa.Table) -> Rows:
    """Return rows of the table ``mcnemar``: every pair of runs within each benchmark, in the order of their answers.

    ``p_holm`` is adjusted over all pairs of the benchmark. Raises ``DataError`` when runs answered different problems.
    """
    verdicts: dict[str, dict[str, dict[str, bool]]] = {}
    for (benchmark, run), group in _by_benchmark_and_run(answers).items():
        verdicts.setdefault(benchmark, {})[run] = {problem: row["correct"] for problem, row in group.items()}
    rows = []
    for benchmark, runs in verdicts.items():
        pairs = list(combinations(runs, 2))
        tests = [mcnemar(runs[run_a], runs[run_b]) for run_a, run_b in pairs]
        adjusted = holm([test.p_exact for test in tests])
        rows += [
            {
                "benchmark": benchmark,
                "run_a": run_a,
                "run_b": run_b,
                "n": test.n,
                "only_a": test.only_a,
                "only_b": test.only_b,
                "p_exact": test.p_exact,
                "p_holm": p_holm,
            }
            for (run_a, run_b), test, p_holm in zip(pairs, tests, adjusted, strict=True)
        ]
    return rows


def _by_benchmark_and_run(answers: pa.Table) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Group answers by (benchmark, run), then by problem, all in order of appearance."""
    columns = ["run", "benchmark", "problem_id", "extracted", "correct", "truncated"]
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in answers.select(columns).to_pylist():
        group = groups.setdefault((row["benchmark"], row["run"]), {})
        where = f"problem {row['problem_id']!r} of benchmark {row['benchmark']!r} for run {row['run']!r}"
        if row["problem_id"] in group:
            raise DataError(f"the answers hold {where} twice; each problem counts once")
        if row["correct"] is None:
            raise DataError(f"the answer to {where} has no verdict; grade the answers first")
        group[row["problem_id"]] = row
    return groups
