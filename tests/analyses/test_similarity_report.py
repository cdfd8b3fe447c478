import numpy as np
import pytest
from view_cases import axes_of, finished, view_of

from raygeo.analyses.similarity import report

RUNS = ("sft", "dpo", "rft", "kto")
COSINES = {("sft", "dpo"): 0.1, ("sft", "rft"): 0.9, ("sft", "kto"): 0.2, ("dpo", "rft"): 0.15, ("dpo", "kto"): 0.8,
           ("rft", "kto"): -0.05}  # fmt: skip


def view(pairs):
    rows = [
        {"run_a": one, "run_b": other, "scope": "global", "name": "", "cosine": cosine}
        for (a, b), cosine in pairs.items()
        for one, other in ((a, b), (b, a))
    ]
    return view_of(runs=finished(*RUNS), similarity=rows)


def test_cosines_stand_in_clustered_order_with_their_values():
    (ax,) = axes_of(report.cosine_heatmap, view(COSINES))
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(shown) == sorted(RUNS)
    assert abs(shown.index("sft") - shown.index("rft")) == abs(shown.index("dpo") - shown.index("kto")) == 1
    cells = ax.collections[0].get_array().reshape(4, 4)
    for i, a in enumerate(shown):
        for j, b in enumerate(shown):
            assert cells[i, j] == pytest.approx(1.0 if a == b else COSINES.get((a, b), COSINES.get((b, a))))
    assert (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) == (-1, 1)


def test_a_missing_cosine_leaves_its_cell_empty_and_the_studys_order():
    (ax,) = axes_of(report.cosine_heatmap, view({pair: x for pair, x in COSINES.items() if pair != ("sft", "rft")}))
    assert [label.get_text() for label in ax.get_yticklabels()] == list(RUNS)
    assert ax.collections[0].get_array().mask.sum() == 2
    assert len(ax.texts) == 14


def test_nothing_is_said_of_a_cosine_that_was_not_measured():
    assert report.cosine_cells(view({})) == {}
    assert report.cosine_cells(view({("dpo", "rft"): 0.15})) == {}


def test_a_pair_stands_once_with_both_orthogonal_fractions():
    pair = {"scope": "global", "name": "", "cosine": 0.6, "null_sd": 0.0013}
    rows = [
        {"run_a": "dpo", "run_b": "sft", "orthogonal_fraction": 0.8} | pair,
        {"run_a": "sft", "run_b": "dpo", "orthogonal_fraction": 0.7} | pair,
    ]
    [(title, _, sheet)] = report.pairs.sheets(view_of(runs=finished("sft", "dpo"), similarity=rows))
    assert title == "Cosine and orthogonal fractions, pair by pair: 1 row"
    assert sheet.rows == [["sft", "dpo", "0.600", "0.0013", "0.700", "0.800"]]
    np.testing.assert_array_equal(sheet.columns[-2:], ["b orthogonal to a", "a orthogonal to b"])
