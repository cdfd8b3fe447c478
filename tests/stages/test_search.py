import json

import pytest

from raygeo.search.settings import Asha
from raygeo.search.space import Choice, Range
from raygeo.stages.search import _read, _written, is_settled

LR, LORA = ("lr",), ("lora",)


def test_what_was_asked_is_read_back_as_it_was():
    spaces = [{LR: Range(1e-5, 1e-3)}, {LORA: Choice((None, {"r": 4, "targets": ("q", "k")})), LR: Range(1e-5, 1e-3)}]
    asked = [(1, {LORA: spaces[1][LORA].values[1], LR: 1.234e-4}), (0, {LR: 1e-5}), (1, {LORA: None, LR: 1e-3})]
    assert _read(_written(asked), spaces) == asked
    assert json.loads(_written(asked))[1] == [0, {"lr": 1e-5}]
    assert _read(None, spaces) == []


@pytest.mark.parametrize(
    ("status", "scheduler", "settled"),
    [("finished", None, True), ("diverged", None, True), ("stopped", Asha(), True), ("stopped", None, False)],
)
def test_a_stopped_run_is_settled_only_where_runs_may_be_stopped(store, status, scheduler, settled):
    store.write_unit("key", {"runs": [{"run": "a", "status": status}], "curves": []})
    assert is_settled(store, "key", scheduler) == settled
    assert not is_settled(store, "other", scheduler)
