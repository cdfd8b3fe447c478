import json

from report_study import REFERENCE, RUNS
from view_cases import view_of

from raygeo.report.limits import selection
from raygeo.report.results import trials

DPO, GRPO = "dpo-lr5e-05-s0", "grpo-lr5e-05-s0"
ROWS = [
    {"run": DPO, "entry": 1, "values": json.dumps({"loss.beta": 0.1, "lr": 5e-5}), "status": "finished",
     "accuracy": 0.677, "heldout_nll": 0.1234, "rank": 2},
    {"run": GRPO, "entry": 2, "values": json.dumps({"loss.surrogate": "ppo"}), "status": "stopped"},
    {"run": REFERENCE, "entry": 0, "values": "{}", "status": "finished", "accuracy": 0.833, "heldout_nll": 0.05,
     "rank": 1},
]  # fmt: skip


def view(rows):
    assert {row["run"] for row in rows} <= set(RUNS)
    return view_of(REFERENCE, trials=rows)


def test_the_best_come_first_and_the_stopped_last():
    sheet = trials(view(ROWS))
    assert sheet.columns == ["run", "chosen", "accuracy", "held-out NLL", "rank", "status"]
    assert [list(row) for row in sheet.rows] == [
        [REFERENCE, "", "83.3 %", "0.050", "1", "finished"],
        [DPO, "loss.beta 0.1, lr 5e-05", "67.7 %", "0.123", "2", "finished"],
        [GRPO, 'loss.surrogate "ppo"', "–", "–", "–", "stopped"],
    ]


def test_curvature_is_a_column_where_it_was_an_objective():
    sheet = trials(view([ROWS[0] | {"top_eigenvalue": 8.91}]))
    assert sheet.rows[0][sheet.columns.index("top eigenvalue")] == "8.91"


def test_without_a_sweep_there_is_no_sheet():
    assert trials(view([])).rows == []


def test_the_reader_is_told_that_the_best_of_many_is_flattered():
    [told] = selection(view(ROWS))
    assert told.startswith("2 configurations were compared")
    assert selection(view(ROWS[1:2])) == []
