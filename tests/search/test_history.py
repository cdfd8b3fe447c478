import json

from raygeo.search.history import read_history, write_history
from raygeo.search.space import Choice, Range

LR, LORA = ("lr",), ("lora",)


def test_what_was_suggested_is_read_back_as_it_was():
    spaces = [{LR: Range(1e-5, 1e-3)}, {LORA: Choice((None, {"r": 4, "targets": ("q", "k")})), LR: Range(1e-5, 1e-3)}]
    suggested = [(1, {LORA: spaces[1][LORA].values[1], LR: 1.234e-4}), (0, {LR: 1e-5}), (1, {LORA: None, LR: 1e-3})]
    assert read_history(write_history(suggested), spaces) == suggested
    assert json.loads(write_history(suggested))[1] == [0, {"lr": 1e-5}]
    assert read_history(None, spaces) == []
