import json

import numpy as np
import pytest
from report_study import REFERENCE, RUNS
from view_cases import axes_of, view_of

from raygeo.report.limits import selection
from raygeo.report.trials import front, trials

DPO, GRPO = "dpo-lr5e-05-s0", "grpo-lr5e-05-s0"
ACCURACY = {"metric": "eval/heldout/accuracy", "mode": "max"}
NLL = {"metric": "eval/heldout/nll", "mode": "min"}
KL = {"metric": "geometry/kl_to_base", "at_most": 0.2}


def trial(run, entry, values, rank=None, keeps=None, status="finished", **measured):
    return {"run": run, "entry": entry, "values": json.dumps(values), "status": status, "rank": rank, "keeps": keeps,
            "measured": json.dumps({name.replace("__", "/"): value for name, value in measured.items()})}  # fmt: skip


ROWS = [
    trial(DPO, 1, {"loss.beta": 0.1, "lr": 5e-5}, 2, True, eval__heldout__accuracy=0.677, eval__heldout__nll=0.1234),
    trial(GRPO, 2, {"loss.surrogate": "ppo"}, status="stopped"),
    trial(REFERENCE, 0, {}, 1, True, eval__heldout__accuracy=0.833, eval__heldout__nll=0.05),
]


def view(rows, *objectives):
    assert {row["run"] for row in rows} <= set(RUNS)
    return view_of(REFERENCE, trials=rows, objectives=list(objectives))


def test_the_best_come_first_and_the_stopped_last():
    sheet = trials.make(view(ROWS, ACCURACY, NLL))
    assert sheet.columns == ["run", "chosen", "eval/heldout/accuracy (max)", "eval/heldout/nll (min)", "rank", "status"]
    assert [list(row) for row in sheet.rows] == [
        [REFERENCE, "", "83.3 %", "0.0500", ("1", "front"), "finished"],
        [DPO, "loss.beta 0.1, lr 5e-05", "67.7 %", "0.123", "2", "finished"],
        [GRPO, 'loss.surrogate "ppo"', "–", "–", "–", "stopped"],
    ]


def test_a_single_objective_has_no_front():
    assert trials.make(view(ROWS, ACCURACY)).rows[0][3] == "1"


def test_what_does_not_keep_a_bound_is_marked():
    rows = [ROWS[0] | {"keeps": False, "rank": 3}, ROWS[2]]
    sheet = trials.make(view(rows, ACCURACY, {"metric": "eval/heldout/nll", "at_least": 0.01, "at_most": 0.1}))
    assert sheet.columns[3] == "eval/heldout/nll (≥ 0.01, ≤ 0.1)"
    assert sheet.rows[1][4] == ("3", "beyond a bound")


def test_a_metric_may_be_aimed_at_and_bounded():
    sheet = trials.make(view(ROWS, ACCURACY, {"metric": "eval/heldout/accuracy", "at_least": 0.5}))
    assert sheet.columns == ["run", "chosen", "eval/heldout/accuracy (max, ≥ 0.5)", "rank", "status"]


def test_without_a_sweep_there_is_no_sheet_and_no_figure():
    assert trials.make(view([])).rows == []
    assert front.draw(view([])) is None


def test_the_front_joins_the_best_means_over_seeds_and_skips_what_keeps_no_bound():
    def config(run, entry, rank, keeps, values):
        return [
            trial(
                run, entry, {}, rank, keeps, eval__heldout__accuracy=a, eval__heldout__nll=n, geometry__kl_to_base=0.1
            )
            for a, n in values
        ]

    rows = [
        *config(REFERENCE, 0, 1, True, [(0.8, 0.4), (0.6, 0.6)]),
        *config(DPO, 1, 1, True, [(0.5, 0.2)]),
        *config(GRPO, 2, 2, False, [(0.9, 0.1)]),
    ]
    [scatter, bounded] = axes_of(front, view(rows, ACCURACY, NLL, KL))
    joined = max(scatter.lines, key=lambda line: len(line.get_xdata()))
    assert np.column_stack(joined.get_data()) == pytest.approx(np.array([[0.5, 0.2], [0.7, 0.5]]))
    marked = [line for line in scatter.lines if line is not joined]
    assert [float(line.get_xdata()[0]) for line in marked] == pytest.approx([0.7, 0.5, 0.9])
    assert [line.get_markerfacecolor() == "none" for line in marked] == [False, False, True]
    assert scatter.yaxis_inverted()  # less NLL is better
    assert not scatter.xaxis_inverted()
    assert bounded.lines[-1].get_ydata() == pytest.approx([0.2, 0.2])
    assert bounded.get_ylabel() == "geometry/kl_to_base\nless is better"


def test_the_reader_is_told_that_the_best_of_many_is_flattered():
    [told] = selection(view(ROWS))
    assert told.startswith("2 configurations were compared")
    assert selection(view(ROWS[1:2])) == []
