from dataclasses import replace

import numpy as np
import pytest
from benchmarks import training
from benchmarks.cases import CASES, prepare
from benchmarks.competitors import torch_loop
from benchmarks.fixed_cost import fixed_costs
from benchmarks.race import Result, Turn, race

REPORTS = [[13.0, 13.5, 14.0], [16.0, 17.0], [20.0, 22.0]]


def test_trl_and_a_plain_loop_train_as_raygeo_does(monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setattr(training, "TRL", {"pair": {"TRL": {"precompute_ref_log_probs": True}}})
    rows = training.compare(CASES["tiny"], "dpo", rounds=1, steps=5, threads=1, together=True)
    assert [row["competitor"] for row in rows] == ["raygeo", "plain torch", "TRL", "TRL for each run"]
    assert len({row["tokens"] for row in rows}) == 1
    assert [row["loss_first"] for row in rows] == pytest.approx([np.log(2)] * 4, abs=1e-5)
    assert [row["loss_next"] for row in rows] == pytest.approx([rows[0]["loss_next"]] * 4, abs=1e-4)
    assert abs(rows[0]["loss_next"] - np.log(2)) > 1e-3
    assert rows[0]["cpu_seconds"]["ratio"] == rows[0]["seconds"]["ratio"] == 1
    shared, alone = (row["reference_seconds_per_step"] for row in rows[2:])
    assert shared * training.SWEEP == pytest.approx(alone)
    assert training.table(rows).row_count == 4


def test_a_turn_has_the_steps_it_was_given(tmp_path):
    prepared = prepare(replace(CASES["tiny"], completions=(3, 9), vocabulary=128), 4, 1, tmp_path)
    (result,) = race({"plain": (torch_loop, (prepared, "sft"))}, turns=2, steps=2, threads=1, together=False)
    (turn,) = result.turns
    assert turn.steps == 2
    assert 2 * 8 * 3 <= turn.completion_tokens <= 2 * 8 * 9
    assert turn.tokens > turn.completion_tokens
    assert result.told["loss_first"] == pytest.approx(np.log(128), abs=0.5)


def test_a_competitor_that_fails_ends_the_race_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)broken failed.*Traceback"):
        race({"broken": (torch_loop, (None, "sft"))}, turns=2, steps=1, threads=1, together=True)


def test_rates_are_medians_over_turns():
    turns = [Turn(seconds, 2 * seconds, 100, 150, 1) for seconds in (1.0, 2.0, 4.0)]
    assert Result("x", turns, {}).rate() == 50
    assert Result("x", turns, {}).rate("tokens", "cpu_seconds") == 37.5


def test_fixed_costs_are_what_is_not_between_a_runs_reports():
    costs = fixed_costs(REPORTS, 10.0, 23.0)
    assert costs["each"] == [2.0, 3.0]
    assert (costs["first"], costs["later"], costs["closing"]) == (3.0, 2.5, 1.0)
    training_seconds = sum(max(times) - min(times) for times in REPORTS)
    assert costs["mean"] == pytest.approx((13.0 - training_seconds) / 3)


def test_fixed_costs_in_cpu_seconds_do_not_depend_on_the_order_of_runs():
    costs = fixed_costs(REPORTS[::-1], 10.0, 23.0, lambda t: float(np.interp(t, [10, 20, 30], [0, 20, 20])))
    assert costs["each"] == pytest.approx([4.0, 6.0])
    assert (costs["first"], costs["closing"]) == pytest.approx((6.0, 0.0))


@pytest.mark.parametrize("reports", [[[11.0, 15.0], [14.0, 16.0]], [[11.0, 15.0], [16.0, 24.0]], [[11.0, 12.0]]])
def test_runs_that_overlap_have_no_fixed_cost_of_their_own(reports):
    with pytest.raises(ValueError, match="one after the other"):
        fixed_costs(reports, 10.0, 23.0)


def test_a_case_is_resized_in_whole_prompts():
    assert CASES["vocabulary"].resized(None, (5, 9)).completions == (5, 9)
    case = CASES["word-problems"].resized(8)
    assert (case.rows, case.micro_rows, case.completions) == (8, 8, None)
    assert CASES["tiny"].resized(None, (5, 9)).completions is None
    with pytest.raises(ValueError, match="multiple of 4"):
        case.resized(6)
