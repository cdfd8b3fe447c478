import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from raygeo.errors import DataError
from raygeo.evaluation.statistics import accuracy_rows, holm, mcnemar, mcnemar_rows, paired_bootstrap, wilson
from raygeo.tables import to_arrow


@pytest.mark.parametrize(("correct", "n", "low", "high"), [(9, 30, 0.167, 0.479), (2, 30, 0.018, 0.213)])
def test_wilson_known_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 5_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_against_its_formula(counts, level):
    correct, n = counts
    z, p = stats.norm.ppf((1 + level) / 2), correct / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson(correct, n, level) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(DataError, match="no proportion"):
        wilson(correct, n)


def verdicts(both, only_a, only_b, neither):
    cells = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    a = {str(problem): cell[0] for problem, cell in enumerate(cells)}
    b = {str(problem): cell[1] for problem, cell in reversed(list(enumerate(cells)))}
    return a, b


def test_mcnemar_known_values():
    result = mcnemar(*verdicts(5, 0, 6, 3))
    assert result[:3] == (14, 0, 6)
    assert result.p_exact == 0.03125
    assert result.p_mid == pytest.approx(0.015625, abs=1e-12)
    assert mcnemar(*verdicts(5, 0, 5, 3)).p_exact == 0.0625


def test_mcnemar_without_discordant_problems():
    assert mcnemar(*verdicts(4, 0, 0, 2))[1:] == (0, 0, 1.0, 1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [pair for pair in product(range(8), repeat=2) if sum(pair)])
def test_mcnemar_against_sums_over_all_outcomes(only_a, only_b):
    result = mcnemar(*verdicts(3, only_a, only_b, 2))
    m = only_a + only_b
    extreme = abs(only_a - only_b)
    weight = {k: math.comb(m, k) / 2**m for k in range(m + 1)}
    beyond = sum(w for k, w in weight.items() if abs(2 * k - m) > extreme)
    equal = sum(w for k, w in weight.items() if abs(2 * k - m) == extreme)
    assert result.p_exact == pytest.approx(beyond + equal, abs=1e-12)
    assert result.p_mid == pytest.approx(beyond + equal / 2, abs=1e-12)
    assert result.p_exact == pytest.approx(stats.binomtest(only_a, m).pvalue, abs=1e-12)


def test_mcnemar_uses_the_discordant_cells_only():
    table = [[900, 41], [19, 359]]
    result = mcnemar(*verdicts(900, 41, 19, 359))
    assert result.p_exact == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, rel=1e-12)
    assert result.n == 1319


def test_mcnemar_refuses_different_problems():
    with pytest.raises(DataError, match="2 of 3 have only one"):
        mcnemar({"1": True, "2": True}, {"1": True, "3": True})


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_against_its_formula(p_values):
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    expected, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        expected[index] = running
    assert holm(p_values) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(DataError, match="between 0 and 1"):
        holm([0.5, p])


def test_bootstrap_against_scipy():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.1, 1.0, 300), generator.normal(0.0, 1.0, 300)
    ours = paired_bootstrap(a, b, resamples=20_000, seed=1)
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    )
    assert ours.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    spread = np.std(a - b, ddof=1) / math.sqrt(300)
    assert ours[1:3] == pytest.approx(tuple(theirs.confidence_interval), abs=0.06 * spread)
    normal = 2 * stats.norm.sf(abs(ours.difference) / spread)
    assert ours.p == pytest.approx(normal, rel=0.1)


def test_bootstrap_pairs_items():
    generator = np.random.default_rng(0)
    a = generator.normal(size=200)
    result = paired_bootstrap(a + 0.1, a)
    assert (result.low, result.high) == pytest.approx((0.1, 0.1))
    assert result.p == pytest.approx(2 / 10_001)


def test_bootstrap_is_seeded_and_independent_of_its_chunks(monkeypatch):
    a, b = np.arange(50.0), np.arange(50.0)[::-1] ** 1.01
    first = paired_bootstrap(a, b, resamples=1_000, seed=3)
    assert paired_bootstrap(a, b, resamples=1_000, seed=3) == first
    assert paired_bootstrap(a, b, resamples=1_000, seed=4) != first
    monkeypatch.setattr("raygeo.evaluation.statistics._DRAWS_AT_ONCE", 64)
    assert paired_bootstrap(a, b, resamples=1_000, seed=3) == first


def test_bootstrap_of_equal_runs_has_p_one():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1], resamples=100) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([[1.0]], [[1.0]])])
def test_bootstrap_refuses_unpaired_or_unfinished_numbers(a, b):
    with pytest.raises(DataError, match="equal length"):
        paired_bootstrap(a, b)


def answers(**runs):
    return to_arrow(
        "answers",
        [
            {
                "run": run,
                "benchmark": benchmark,
                "problem_id": str(problem),
                "extracted": None if verdict == "-" else "1",
                "correct": verdict == "1",
                "truncated": verdict == "-",
            }
            for run, by_benchmark in runs.items()
            for benchmark, marks in by_benchmark.items()
            for problem, verdict in enumerate(marks)
        ],
    )


def test_accuracy_rows():
    rows = accuracy_rows(answers(sft={"gsm8k": "1100-", "aime": "0"}, base={"gsm8k": "11111"}))
    assert to_arrow("accuracy", rows).num_rows == 3
    assert [(r["run"], r["benchmark"], r["n"], r["correct"], r["truncated"], r["no_answer"]) for r in rows] == [
        ("sft", "gsm8k", 5, 2, 1, 1),
        ("sft", "aime", 1, 0, 0, 0),
        ("base", "gsm8k", 5, 5, 0, 0),
    ]
    assert rows[0]["accuracy"] == 0.4
    assert (rows[0]["low"], rows[0]["high"]) == wilson(2, 5)


def test_mcnemar_rows_are_adjusted_within_each_benchmark():
    rows = mcnemar_rows(
        answers(
            base={"gsm8k": "00000000", "aime": "01"},
            sft={"gsm8k": "11111100", "aime": "10"},
            dpo={"gsm8k": "11111111"},
        )
    )
    assert to_arrow("mcnemar", rows).num_rows == 4
    assert [(r["benchmark"], r["run_a"], r["run_b"], r["n"], r["only_a"], r["only_b"]) for r in rows] == [
        ("gsm8k", "base", "sft", 8, 0, 6),
        ("gsm8k", "base", "dpo", 8, 0, 8),
        ("gsm8k", "sft", "dpo", 8, 0, 2),
        ("aime", "base", "sft", 2, 1, 1),
    ]
    assert [r["p_exact"] for r in rows] == pytest.approx([2 / 64, 2 / 256, 0.5, 1.0])
    assert [r["p_holm"] for r in rows] == pytest.approx([4 / 64, 6 / 256, 0.5, 1.0])


def test_rows_of_no_answers_and_of_one_run():
    assert accuracy_rows(answers()) == []
    assert mcnemar_rows(answers()) == []
    assert mcnemar_rows(answers(base={"gsm8k": "01"})) == []


def test_runs_with_different_problems_are_refused():
    with pytest.raises(DataError, match="same problems"):
        mcnemar_rows(answers(base={"gsm8k": "01"}, sft={"gsm8k": "011"}))


def test_repeated_and_ungraded_answers_are_refused():
    row = {"run": "base", "benchmark": "gsm8k", "problem_id": "1", "correct": True}
    with pytest.raises(DataError, match="twice"):
        accuracy_rows(to_arrow("answers", [row, row]))
    with pytest.raises(DataError, match="no verdict"):
        mcnemar_rows(to_arrow("answers", [{**row, "correct": None}]))
