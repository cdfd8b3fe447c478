"""Accuracy with its uncertainty, and paired comparisons of runs that answered the same problems."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.stats import t as student_t
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from raygeo.errors import DataError
from raygeo.workload import Rows

FEW = 10
"""Problems below which an interval of several answers each is rough."""


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927, https://doi.org/10.2307/2276774).

    Raises:
        DataError: there are no answers, or more correct ones than answers.
    """
    if not 0 <= correct <= n or n == 0:
        raise DataError(
            f"{correct} correct of {n} answers is not a proportion: there must be answers, and not more correct ones."
        )
    low, high = proportion_confint(correct, n, alpha=1 - level, method="wilson")
    return Interval(float(low), float(high))


def clustered(means: Sequence[float], samples: int, level: float = 0.95) -> Interval:
    """Return an interval of the mean of ``means`` [N], one value in [0, 1] a problem, each made of ``samples`` answers.

    It is Wilson's at an effective number of answers: all n = N ``samples`` of them, divided by the design effect, which
    is the cluster-robust variance of the mean p, the sum of (mean_i - p)^2 over N (N - 1), over p (1 - p) / (n - 1);
    and times (t(n - 1) / t(N - 1))^2, quantiles of Student's t, because N problems tell little of that variance (Korn &
    Graubard 1998; Dean & Pagano 2015, https://doi.org/10.1093/jssam/smv024). The number is at least N, that of problems
    which are always or never solved, and so that of a single problem. For one answer each it is N, and this is Wilson's
    interval itself. Of fewer than ten problems (``FEW``) the interval is rough.

    Raises:
        DataError: there are no problems, or a value is not in [0, 1].
    """
    values = np.asarray(means, dtype=np.float64)
    if not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"{len(values)} means of problems make no interval: there must be some, all in [0, 1].")
    n, p = len(values), float(values.mean())
    answers, spread = n * samples, p * (1 - p)
    effective = float(n)
    if n > 1 and spread > 0:
        between = float(((values - p) ** 2).sum()) / (n * (n - 1))
        design = max(1.0, between * (answers - 1) / spread)
        known = float(student_t.ppf(0.5 + level / 2, answers - 1) / student_t.ppf(0.5 + level / 2, n - 1)) ** 2
        effective = max(effective, answers / design * known)
    low, high = proportion_confint(p * effective, effective, alpha=1 - level, method="wilson")
    return Interval(float(low), float(high))


def pass_at(k: int, correct: int, samples: int) -> float:
    """Return the probability that ``k`` of ``samples`` answers, drawn without replacement, hold a correct one.

    That is ``1 - C(samples - correct, k) / C(samples, k)``, the unbiased estimate of pass@k of one problem (Chen et al.
    2021, arXiv:2107.03374, equation 1).

    Raises:
        DataError: ``k`` is not between 1 and ``samples``, or more are correct than there are.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise DataError(f"pass@{k} cannot be estimated of {correct} correct of {samples} answers.")
    return 1 - comb(samples - correct, k) / comb(samples, k)


class McNemar(NamedTuple):
    """A paired comparison of runs A and B on ``n`` problems: who solves more alone or more often, and a p-value."""

    n: int
    only_a: int
    only_b: int
    p_exact: float


def mcnemar(a: Mapping[str, bool], b: Mapping[str, bool]) -> McNemar:
    """Compare two runs' verdicts, given by problem id.

    ``p_exact`` is the two-sided binomial p-value of the discordant problems at 1/2 (McNemar 1947), 1 if there are none.

    Raises:
        DataError: the problems are not the same.
    """
    _check_same(a, b)
    only_a = sum(a[problem] and not b[problem] for problem in a)
    only_b = sum(b[problem] and not a[problem] for problem in a)
    p_exact = float(exact_mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)
    return McNemar(len(a), only_a, only_b, p_exact)


def sign_flips(a: Mapping[str, int], b: Mapping[str, int]) -> McNemar:
    """Compare how often two runs solved each problem, of equally many answers, given by problem id.

    ``p_exact`` is that of the exact two-sided sign-flip test (Fisher 1935, The Design of Experiments, section 21): if
    the runs are alike, each problem's difference is as likely to have the other sign, and p is the probability that
    their sum is then as far from 0 as it is. Answers to one problem stay together, so they need not be independent.
    With one answer a problem this is McNemar's test.

    Raises:
        DataError: the problems are not the same.
    """
    _check_same(a, b)
    differences = np.array([a[problem] - b[problem] for problem in a], dtype=np.int64)
    sizes = np.abs(differences[differences != 0])
    reached, total = np.ones(1), 0
    for size in sizes.tolist():  # the probability of each sum of signed sizes, from -total to total
        grown = np.zeros(len(reached) + 2 * size)
        grown[: len(reached)] = 0.5 * reached
        grown[2 * size :] += 0.5 * reached
        reached, total = grown, total + size
    sums = np.abs(np.arange(-total, total + 1))
    p_exact = float(reached[sums >= abs(int(differences.sum()))].sum())
    return McNemar(len(a), int((differences > 0).sum()), int((differences < 0).sum()), min(1.0, p_exact))


def _check_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    if a.keys() != b.keys():
        differing = sorted(a.keys() ^ b.keys())
        raise DataError(
            f"paired statistics need the same problems, but {len(differing)} of {len(a.keys() | b.keys())} have only "
            f"one of the two answers ({', '.join(differing[:3])}, ...); evaluate both runs on the same benchmark."
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of one family of tests, so that a level bounds the family-wise error (Holm 1979).

    Raises:
        DataError: a number is not between 0 and 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise DataError(f"p-values must lie between 0 and 1, got {[p for p in p_values if not 0 <= p <= 1][:3]}")
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


def accuracy_rows(answers: pa.Table) -> Rows:
    """Return rows of the table ``accuracy`` from the table ``answers``: one a run and benchmark.

    Intervals are ``wilson``'s, or ``clustered`` where there are several samples. ``no_answer`` counts completions
    without an extracted answer, ``undecided`` those that could not be judged.

    Raises:
        DataError: an answer is repeated or not graded, or problems were answered unequally often.
    """
    rows = []
    for (benchmark, run), asked in _by_benchmark_and_run(answers).items():
        given = [row for drawn in asked.problems.values() for row in drawn]
        n, correct = len(given), sum(row["correct"] for row in given)
        if asked.samples == 1:
            low, high = wilson(correct, n)
        else:
            low, high = clustered([c / asked.samples for c in asked.correct.values()], asked.samples)
        rows.append(
            {
                "run": run,
                "benchmark": benchmark,
                "n": n,
                "correct": correct,
                "accuracy": correct / n,
                "low": low,
                "high": high,
                "truncated": sum(bool(row["truncated"]) for row in given),
                "no_answer": sum(row["extracted"] is None for row in given),
                "undecided": sum(bool(row["undecided"]) for row in given),
                "problems": len(asked.problems),
                "samples": asked.samples,
            }
        )
    return rows


def difference(a: float, a_ends: Interval, b: float, b_ends: Interval) -> Interval:
    """Return an interval of ``a - b``, two proportions of different problems, from the interval of each.

    It is Newcombe's hybrid score interval (1998, method 10, Statistics in Medicine 17:873-890) where ``a_ends`` and
    ``b_ends`` are Wilson's, and the same recovery of variances (Zou & Donner 2008, https://doi.org/10.1002/sim.3095)
    where they are clustered by problem. Its level is theirs.
    """
    below = math.hypot(a - a_ends.low, b_ends.high - b)
    above = math.hypot(a_ends.high - a, b - b_ends.low)
    return Interval(a - b - below, a - b + above)


def drop_rows(accuracy: Rows, shifts: Mapping[str, str]) -> Rows:
    """Return rows of the table ``drops`` from those of ``accuracy``: one a run and benchmark of shift ``ood``.

    ``shifts`` are all benchmarks in order, each with its shift. Within the distribution is the first without one; where
    there is none, there are no rows.
    """
    within = next((name for name, shift in shifts.items() if shift == "none"), None)
    inside = {row["run"]: row for row in accuracy if row["benchmark"] == within}
    rows = []
    for row in accuracy:
        if shifts[row["benchmark"]] != "ood" or row["run"] not in inside:
            continue
        found = {"run": row["run"], "benchmark": row["benchmark"], "within": within}
        a, b = inside[row["run"]], row
        low, high = difference(
            a["accuracy"], Interval(a["low"], a["high"]), b["accuracy"], Interval(b["low"], b["high"])
        )
        found |= {"accuracy_within": a["accuracy"], "accuracy": b["accuracy"], "drop": a["accuracy"] - b["accuracy"]}
        rows.append(found | {"low": low, "high": high})
    return rows


def pass_rows(answers: pa.Table) -> Rows:
    """Return rows of the table ``pass_at_k``: k = 1, 2, 4, ... and the number of samples; none where that is one.

    Raises:
        DataError: as ``accuracy_rows``.
    """
    rows = []
    for (benchmark, run), asked in _by_benchmark_and_run(answers).items():
        for k in pass_sizes(asked.samples):
            values = [pass_at(k, correct, asked.samples) for correct in asked.correct.values()]
            low, high = clustered(values, asked.samples // k)
            row = {"run": run, "benchmark": benchmark, "k": k, "pass_at_k": float(np.mean(values))}
            rows.append(row | {"low": low, "high": high, "problems": len(values), "samples": asked.samples})
    return rows


def pass_sizes(samples: int) -> Iterator[int]:
    """Powers of two below the number of samples, and that number, if it is more than one."""
    k = 1
    while k < samples:
        yield k
        k *= 2
    if samples > 1:
        yield samples


def mcnemar_rows(answers: pa.Table) -> Rows:
    """Return rows of the table ``mcnemar``: every pair of runs within each benchmark, in the order of their answers.

    Problems with one answer each are compared by McNemar's test, others by ``sign_flips``. ``p_holm`` is adjusted over
    all pairs of the benchmark.

    Raises:
        DataError: runs answered different problems, or differently often, or an answer is repeated or not graded.
    """
    verdicts: dict[str, dict[str, _Asked]] = {}
    for (benchmark, run), asked in _by_benchmark_and_run(answers).items():
        verdicts.setdefault(benchmark, {})[run] = asked
    rows = []
    for benchmark, runs in verdicts.items():
        pairs = list(combinations(runs, 2))
        tests = [_paired(benchmark, runs[run_a], runs[run_b]) for run_a, run_b in pairs]
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


class _Asked(NamedTuple):
    """What a run answered to each problem, and how often each was asked."""

    problems: dict[str, list[dict[str, Any]]]
    samples: int

    @property
    def correct(self) -> dict[str, int]:
        """How often each problem was solved."""
        return {problem: sum(row["correct"] for row in drawn) for problem, drawn in self.problems.items()}


def _paired(benchmark: str, a: _Asked, b: _Asked) -> McNemar:
    if a.samples != b.samples:
        raise DataError(f"benchmark {benchmark!r} was answered {a.samples} times by one run, {b.samples} by another.")
    if a.samples > 1:
        return sign_flips(a.correct, b.correct)
    return mcnemar(*({problem: bool(n) for problem, n in each.correct.items()} for each in (a, b)))


def _by_benchmark_and_run(answers: pa.Table) -> dict[tuple[str, str], _Asked]:
    """Group answers by (benchmark, run), then by problem, all in order of appearance."""
    columns = ["run", "benchmark", "problem_id", "extracted", "correct", "truncated", "undecided", "sample"]
    groups: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for row in answers.select(columns).to_pylist():
        group = groups.setdefault((row["benchmark"], row["run"]), {})
        where = f"problem {row['problem_id']!r} of benchmark {row['benchmark']!r} for run {row['run']!r}"
        drawn, sample = group.setdefault(row["problem_id"], {}), row["sample"] or 0
        if sample in drawn:
            raise DataError(f"the answers hold {where} twice; each problem counts once.")
        if row["correct"] is None:
            raise DataError(f"the answer to {where} has no verdict; grade the answers first.")
        drawn[sample] = row
    asked = {}
    for (benchmark, run), group in groups.items():
        counts = {len(drawn) for drawn in group.values()}
        if len(counts) > 1:
            raise DataError(
                f"run {run!r} answered problems of benchmark {benchmark!r} {min(counts)} to {max(counts)} times; "
                "each must be answered equally often."
            )
        asked[benchmark, run] = _Asked({problem: list(drawn.values()) for problem, drawn in group.items()}, *counts)
    return asked
