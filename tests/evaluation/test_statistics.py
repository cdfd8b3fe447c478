import math
from itertools import combinations, product

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from raygeo.errors import DataError
from raygeo.evaluation.statistics import (
    accuracy_rows,
    clustered,
    difference,
    drop_rows,
    holm,
    mcnemar,
    mcnemar_rows,
    pass_at,
    pass_rows,
    sign_flips,
    wilson,
)
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
    with pytest.raises(DataError, match="not a proportion"):
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
    assert mcnemar(*verdicts(5, 0, 5, 3)).p_exact == 0.0625


def test_mcnemar_without_discordant_problems():
    assert mcnemar(*verdicts(4, 0, 0, 2))[1:] == (0, 0, 1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [pair for pair in product(range(8), repeat=2) if sum(pair)])
def test_mcnemar_against_sums_over_all_outcomes(only_a, only_b):
    result = mcnemar(*verdicts(3, only_a, only_b, 2))
    m = only_a + only_b
    extreme = abs(only_a - only_b)
    weight = {k: math.comb(m, k) / 2**m for k in range(m + 1)}
    beyond = sum(w for k, w in weight.items() if abs(2 * k - m) > extreme)
    equal = sum(w for k, w in weight.items() if abs(2 * k - m) == extreme)
    assert result.p_exact == pytest.approx(beyond + equal, abs=1e-12)
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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_with_one_answer_each_a_clustered_interval_is_wilsons(verdicts):
    assert clustered(list(map(float, verdicts)), 1) == pytest.approx(wilson(sum(verdicts), len(verdicts)), abs=1e-9)


def test_a_clustered_interval_has_the_width_of_cluster_robust_least_squares():
    """Against statsmodels' cluster-robust standard error of a mean, without its correction for few clusters."""
    rng = np.random.default_rng(0)
    problems, samples = 4000, 8
    solved = rng.binomial(samples, rng.beta(0.5, 0.7, problems))
    answers = np.concatenate([np.arange(samples) < count for count in solved]).astype(float)
    fit = sm.OLS(answers, np.ones_like(answers)).fit(
        cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(problems), samples), "use_correction": False}
    )
    low, high = clustered(solved / samples, samples)
    assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.975) * fit.bse[0], rel=2e-3)
    assert (high - low) / 2 > 1.5 * (wilson(int(solved.sum()), problems * samples).high - answers.mean())


def test_clustered_intervals_cover_the_truth_where_problems_differ():
    """Of 600 draws of 60 problems with 4 answers each, about 95 % hold the mean that problems are drawn from."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(600):
        low, high = clustered(rng.binomial(4, rng.beta(1, 3, 60)) / 4, 4)
        covered += low <= 0.25 <= high
    assert 0.93 < covered / 600 < 0.975


@pytest.mark.parametrize(("problems", "samples"), [(1, 64), (2, 64), (3, 8), (5, 64), (9, 16)])
def test_clustered_intervals_of_few_problems_cover_the_truth(problems, samples):
    """Of 400 draws of few problems, which answers are many of, no fewer than 95 % but for the error of the count."""
    rng = np.random.default_rng(problems)
    solved = rng.binomial(samples, rng.beta(0.5, 0.7, (400, problems))) / samples
    intervals = [clustered(row, samples) for row in solved]
    assert np.mean([low <= 0.5 / 1.2 <= high for low, high in intervals]) > 0.925


def test_clustered_intervals_at_the_ends_are_as_wide_as_the_number_of_problems_makes_them():
    assert clustered([0.0] * 30, 8) == pytest.approx(wilson(0, 30))
    assert clustered([1.0] * 30, 8) == pytest.approx(wilson(30, 30))
    known = (stats.t.ppf(0.975, 239) / stats.t.ppf(0.975, 29)) ** 2
    assert clustered([0.5] * 30, 8) == pytest.approx(
        proportion_confint(120 * known, 240 * known, method="wilson"), abs=1e-12
    )
    assert clustered([0.25], 64) == pytest.approx(proportion_confint(0.25, 1, method="wilson"), abs=1e-12)
    with pytest.raises(DataError, match="all in"):
        clustered([1.5], 2)
    with pytest.raises(DataError, match="0 means"):
        clustered([], 2)


@pytest.mark.parametrize(("samples", "correct"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_pass_at_k_against_all_subsets(samples, correct):
    verdicts = [True] * correct + [False] * (samples - correct)
    for k in range(1, samples + 1):
        subsets = list(combinations(verdicts, k))
        assert pass_at(k, correct, samples) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
    assert pass_at(1, correct, samples) == pytest.approx(correct / samples)


def test_pass_at_k_is_unbiased_and_refuses_what_it_cannot_know():
    p, samples, k = 0.3, 6, 4
    mean = sum(stats.binom.pmf(c, samples, p) * pass_at(k, c, samples) for c in range(samples + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    for wrong in ((0, 1, 2), (3, 1, 2), (1, 3, 2)):
        with pytest.raises(DataError, match="cannot be estimated"):
            pass_at(*wrong)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=10))
def test_sign_flips_against_all_signs(counts):
    a, b = ({str(i): pair[side] for i, pair in enumerate(counts)} for side in (0, 1))
    differences = [x - y for x, y in counts]
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=len(counts))
    ]
    result = sign_flips(a, b)
    assert result.p_exact == pytest.approx(np.mean(np.array(sums) >= abs(sum(differences))), abs=1e-12)
    assert (result.n, result.only_a, result.only_b) == (
        len(counts),
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_with_one_answer_each_sign_flips_are_mcnemars_test(cells):
    a, b = verdicts(*cells)
    assert sign_flips(a, b) == pytest.approx(mcnemar(a, b), abs=1e-12)


def test_sign_flips_of_many_problems_are_those_of_the_normal_limit():
    rng = np.random.default_rng(2)
    a, b = rng.binomial(16, 0.52, 1319), rng.binomial(16, 0.5, 1319)
    given = [{str(i): int(n) for i, n in enumerate(each)} for each in (a, b)]
    z = abs((a - b).sum()) / np.sqrt(((a - b) ** 2).sum())
    assert sign_flips(*given).p_exact == pytest.approx(2 * stats.norm.sf(z), rel=0.05)
    with pytest.raises(DataError, match="only one of the two"):
        sign_flips({"1": 1}, {"2": 1})


def sampled(**runs):
    """The table of answers, several a problem: ``"110 000"`` are three to each of two problems."""
    return to_arrow(
        "answers",
        [
            {"run": run, "benchmark": "aime", "problem_id": str(problem), "sample": sample, "extracted": "1",
             "correct": verdict == "1", "truncated": False}
            for run, marks in runs.items()
            for problem, drawn in enumerate(marks.split())
            for sample, verdict in enumerate(drawn)
        ],
    )  # fmt: skip


def test_rows_of_several_answers_a_problem():
    table = sampled(base="1100 0000 1111", sft="1110 1000 1111")
    base, sft = accuracy_rows(table)
    assert (base["n"], base["problems"], base["samples"], base["correct"]) == (12, 3, 4, 6)
    assert (base["accuracy"], sft["accuracy"]) == (0.5, 8 / 12)
    assert (base["low"], base["high"]) == clustered([0.5, 0.0, 1.0], 4)
    rows = pass_rows(table)
    assert to_arrow("pass_at_k", rows).num_rows == 6
    found = {(row["run"], row["k"]): row["pass_at_k"] for row in rows}
    assert found["base", 1] == 0.5
    assert found["base", 2] == pytest.approx((pass_at(2, 2, 4) + 0 + 1) / 3)
    assert found["base", 4] == pytest.approx(2 / 3)
    (test,) = mcnemar_rows(table)
    assert (test["n"], test["only_a"], test["only_b"], test["p_exact"]) == (3, 0, 2, 0.5)
    assert pass_rows(answers(base={"gsm8k": "01"})) == []


def test_unequal_numbers_of_answers_are_refused():
    with pytest.raises(DataError, match="1 to 2 times"):
        accuracy_rows(sampled(base="11 0"))
    with pytest.raises(DataError, match="2 times by one run, 1 by another"):
        mcnemar_rows(sampled(base="11 01", sft="1 0"))


def test_undecided_answers_are_counted_and_not_correct():
    row = {"run": "a", "benchmark": "b", "extracted": "1", "truncated": False}
    table = [row | {"problem_id": "1", "correct": True}, row | {"problem_id": "2", "correct": False, "undecided": True}]
    (counted,) = accuracy_rows(to_arrow("answers", table))
    assert (counted["n"], counted["correct"], counted["accuracy"], counted["undecided"]) == (2, 1, 0.5, 1)


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


@pytest.mark.parametrize(("a", "n", "b", "m"), [(56, 70, 48, 80), (9, 10, 3, 10), (5, 56, 0, 29), (29, 29, 0, 29)])
def test_the_difference_of_two_proportions_against_statsmodels(a, n, b, m):
    found = difference(a / n, wilson(a, n), b / m, wilson(b, m))
    expected = confint_proportions_2indep(a, n, b, m, method="newcomb", compare="diff")
    assert found == pytest.approx(expected, abs=1e-12)
    turned = difference(b / m, wilson(b, m), a / n, wilson(a, n))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_a_drop_of_equal_accuracies_is_covered_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(150, 0.4, (2, 2000))
    ends = [difference(a / 150, wilson(a, 150), b / 150, wilson(b, 150)) for a, b in draws.T.tolist()]
    assert np.mean([low <= 0 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.015)


def test_drops_are_from_the_first_benchmark_without_a_shift():
    rows = accuracy_rows(
        answers(
            base={"before": "11", "in": "1100", "also": "1111", "out": "1000"},
            sft={"before": "01", "in": "1110", "also": "1111", "out": "1000"},
        )
    )
    shifts = {"before": "retention", "in": "none", "also": "none", "out": "ood"}
    drops = drop_rows(rows, shifts)
    assert to_arrow("drops", drops).num_rows == 2
    found = {row["run"]: (row["benchmark"], row["within"], row["accuracy_within"], row["drop"]) for row in drops}
    assert found == {"base": ("out", "in", 0.5, 0.25), "sft": ("out", "in", 0.75, 0.5)}
    assert (drops[0]["low"], drops[0]["high"]) == difference(0.5, wilson(2, 4), 0.25, wilson(1, 4))
    assert drop_rows(rows, shifts | {"in": "ood", "also": "ood"}) == []


def test_a_run_that_lacks_a_benchmark_has_no_drop():
    rows = accuracy_rows(answers(base={"in": "11", "out": "10"}, sft={"out": "10"}))
    assert [row["run"] for row in drop_rows(rows, {"in": "none", "out": "ood"})] == ["base"]
