"""Runs against their learning rate."""

import numpy as np
import pytest
from view_cases import axes_of, row_of, sheet_of, view_of

from raygeo.analyses.norms.report import norm_rates
from raygeo.report.rates import best, curves

SFT = {(1e-4, 0): 0.5, (1e-4, 1): 0.7, (1e-3, 0): 0.9, (1e-3, 1): 0.7, (1e-2, 0): 0.2}
DPO = {(1e-5, 0): 0.8, (1e-4, 0): 0.3}
RUNS = {
    **{f"sft-lr{lr:g}-s{seed}": ("sft", lr, seed, value) for (lr, seed), value in SFT.items()},
    **{f"dpo-lr{lr:g}-s{seed}": ("dpo", lr, seed, value) for (lr, seed), value in DPO.items()},
    "dft-lr0.001-s0": ("dft", 1e-3, 0, 0.6),
}


def view(*tables, status="finished"):
    rows = {
        "runs": [
            {"run": name, "key": name, "loss": loss, "lr": lr, "seed": seed, "status": status}
            for name, (loss, lr, seed, _) in RUNS.items()
        ],
        "accuracy": [
            {"run": name, "benchmark": "heldout", "n": 10, "accuracy": value}
            for name, value in {"base": 0.4, **{name: row[3] for name, row in RUNS.items()}}.items()
        ],
        "training_curves": [
            {"run": name, "step": step, "metric": "heldout_nll", "value": row[3] + 1 / step}
            for name, row in RUNS.items()
            for step in (1, 10)
        ],
        "deltas": [{"run": name, "module": "", "scope": "global", "norm": 100 * row[1]} for name, row in RUNS.items()],
    }
    return view_of("", **{name: rows[name] for name in ("runs", *tables)})


def test_the_best_rate_is_that_of_the_highest_mean_and_says_whether_it_is_at_an_end():
    sheet = sheet_of(best, view("accuracy", "training_curves"))
    assert [row[0] for row in sheet.rows] == ["sft", "dpo"]
    assert row_of(sheet, "sft") == {
        "loss": "sft",
        "best lr": "0.001",
        "accuracy on heldout": ("80.0 %", "[70.0, 90.0]"),
        "next best": "0.0001",
        "its accuracy on heldout": ("60.0 %", "[50.0, 70.0]"),
        "rates tried": ("3", "0.0001 to 0.01"),
        "runs": "5",
        "the best is": "between others",
    }
    assert row_of(sheet, "dpo")["the best is"] == "the lowest tried"


def test_without_accuracy_the_lowest_nll_is_best():
    sheet = sheet_of(best, view("training_curves"))
    assert row_of(sheet, "sft")["best lr"] == "0.01"
    assert row_of(sheet, "sft")["the best is"] == "the highest tried"
    assert row_of(sheet, "sft")["held-out NLL"] == "0.300"


def test_each_loss_that_was_given_several_rates_has_a_line():
    accuracy, nll = axes_of(curves, view("accuracy", "training_curves"))
    sft, dpo, base = accuracy.lines
    np.testing.assert_allclose(sft.get_xydata(), [(1e-4, 0.6), (1e-3, 0.8), (1e-2, 0.2)])
    np.testing.assert_allclose(dpo.get_xydata(), [(1e-5, 0.8), (1e-4, 0.3)])
    assert set(base.get_ydata()) == {0.4}
    np.testing.assert_allclose(nll.lines[0].get_ydata(), [0.7, 0.9, 0.3])
    [norm] = axes_of(norm_rates, view("deltas"))
    np.testing.assert_allclose(norm.lines[0].get_ydata(), [0.01, 0.1, 1.0])


@pytest.mark.parametrize("tables", [(), ("accuracy",)])
def test_one_rate_a_loss_is_no_curve(tables):
    few = view(*tables)
    alone = view_of("", runs=few.rows("runs")[-1:], **{name: few.rows(name) for name in tables})
    assert curves.draw(alone) is None
    assert best.sheets(alone) == []
    assert norm_rates.draw(alone) is None
