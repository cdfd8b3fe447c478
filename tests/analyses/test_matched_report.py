"""What the page and the tracker show of runs at equal distance from the base."""

import numpy as np
import pytest
from view_cases import axes_of, finished, row_of, sheet_of, titles, view_of

from raygeo.analyses.matched import report
from raygeo.analyses.matched.analysis import ANALYSIS
from raygeo.analyses.matched.workload import MatchedSettings
from raygeo.evaluation.statistics import wilson

MEASURED = {"nll": 0.5, "nll_low": 0.4, "nll_high": 0.6, "n": 24, "tokens": 700, "confidence": 0.91, "ece": 0.021}
ASKED = {"problems": 50, "false_false_true": 0.1, "true_true_false": 0.02}


def point(run, quantity, scale, accuracy=None, **other):
    asked = {} if accuracy is None else ASKED | {"accuracy": accuracy}
    target = {"none": None, "norm": 3.0, "kl": 0.05}[quantity]
    return {
        "run": run,
        "quantity": quantity,
        "target": target,
        "scale": scale,
        "norm": 3 * scale,
        "kl": 0.05,
    }, asked | other


def study(accuracy=True, **tables):
    rows = [
        point("base", "none", 1.0, 0.4),
        *(point("sft", quantity, 1.0, 0.8) for quantity in ("none", "norm", "kl")),
        point("dpo", "none", 1.0, 0.42, nll=0.7),
        point("dpo", "norm", 1.6, 0.6, nll=0.55),
    ]
    rows = [
        label | MEASURED | (rest if accuracy else {k: v for k, v in rest.items() if k == "nll"}) for label, rest in rows
    ]
    rows.append({"run": "dpo", "quantity": "kl", "target": 0.05, "reason": "it needs more"})
    return view_of(runs=finished("sft", "dpo"), matched=rows, **tables)


def test_accuracy_stands_at_the_three_distances_with_the_base_as_a_line():
    axes = axes_of(report.matched, study())
    assert titles(axes) == ["as trained", "at equal norm", "at equal divergence"]
    drawn = [[line.get_xdata()[0] for line in ax.lines if line.get_marker() not in ("None", "")] for ax in axes]
    assert drawn == [pytest.approx([80, 42]), pytest.approx([80, 60]), pytest.approx([80])]
    for ax in axes:
        base, bar, *_ = ax.lines
        assert list(base.get_xdata()) == [40, 40]
        np.testing.assert_allclose(bar.get_xdata(), 100 * np.array(wilson(40, 50)))


def test_the_nll_stands_where_no_accuracy_was_measured():
    axes = axes_of(report.matched, study(accuracy=False))
    assert [ax.get_xlabel() for ax in axes] == ["NLL, nats a token"] * 3
    drawn = [[line.get_xdata()[0] for line in ax.lines if line.get_marker() not in ("None", "")] for ax in axes]
    assert drawn == [[0.5, 0.7], [0.5, 0.55], [0.5]]


def test_rows_say_how_far_a_delta_was_scaled_or_why_not():
    sheet = sheet_of(report.points, study())
    row = row_of(sheet, "dpo", "at equal norm")
    assert (row["scale"], row["norm"], row["accuracy"], row["rescued : lost"]) == (
        "1.60",
        "4.80",
        "60.0 %",
        "10.0 % : 2.0 %",
    )
    assert row["NLL"] == ("0.550", "[0.400, 0.600]")
    missing = row_of(sheet, "dpo", "at equal divergence")
    assert missing["scale"] == ("–", "it needs more")
    assert (missing["norm"], missing["accuracy"]) == ("–", "–")
    assert row_of(sheet, "base")["matched"] == "–"
    said = " ".join(report.scaled(study()))
    assert "a scaled delta is not a run trained for fewer steps" in said
    assert "dpo has no point at equal divergence." in said


def test_only_numbers_at_equal_distance_are_metrics():
    assert {(run, name): value for run, name, value in report.metrics(study()) if value is not None} == {
        ("sft", "matched_norm_accuracy"): 0.8,
        ("sft", "matched_norm_nll"): 0.5,
        ("sft", "matched_kl_accuracy"): 0.8,
        ("sft", "matched_kl_nll"): 0.5,
        ("dpo", "matched_norm_accuracy"): 0.6,
        ("dpo", "matched_norm_nll"): 0.55,
    }


def test_accuracies_are_metrics_only_where_problems_are_asked():
    accuracy, nll = ANALYSIS.report.declared
    assert accuracy.known(MatchedSettings()) == []
    assert accuracy.known(MatchedSettings(accuracy_problems=8)) == ["matched_norm_accuracy", "matched_kl_accuracy"]
    assert nll.known(MatchedSettings()) == ["matched_norm_nll", "matched_kl_nll"]


def test_the_verdict_names_runs_that_remain_apart_after_correction():
    def test(run, quantity, gap, p):
        row = {"run": run, "quantity": quantity, "nll": -gap, "nll_low": -0.2, "nll_high": 0.2, "n": 24}
        row |= {"accuracy": gap, "accuracy_low": gap - 0.1, "accuracy_high": gap + 0.1, "problems": 50}
        return row | {"only_run": 1, "only_reference": 11, "p_exact": p / 2, "p_holm": p}

    rows = [test("dpo", "none", -0.38, 0.001), test("dpo", "norm", -0.2, 0.006), test("dpo", "kl", -0.02, 1.0)]
    view = study(matched_tests=rows)
    assert [finding.text for finding in report.apart(view)] == [
        "Scaled to equal norm (50 problems, Holm over 1 run), 1 of 1 run differs from sft in accuracy: dpo (−20.0) "
        "points.",
        "Scaled to equal divergence (50 problems, Holm over 1 run), no run of 1 is told from sft in accuracy.",
    ]
    row = row_of(sheet_of(report.tests, view), "dpo", "at equal norm")
    assert row["accuracy"] == ("−20.0", "[−30.0, −10.0]")
    assert (row["only the run : only the reference"], row["p"], row["p, corrected"]) == ("1 : 11", "0.003", "0.006")
    without = [{"run": "dpo", "quantity": "kl", "nll": 0.1, "nll_low": 0.0, "nll_high": 0.2, "n": 24}]
    assert list(report.apart(study(matched_tests=without))) == []
    row = row_of(sheet_of(report.tests, study(matched_tests=without)), "dpo")
    assert (row["NLL"], row["only the run : only the reference"], row["p, corrected"]) == (
        ("0.100", "[0, 0.200]"),
        "–",
        "–",
    )
