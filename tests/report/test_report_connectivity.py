import numpy as np
import pytest
from report_study import REFERENCE, RUNS

from raygeo.evaluation.summary import run_summaries
from raygeo.report.limits import limits
from raygeo.report.sections import connectivity
from raygeo.report.view import View
from raygeo.tables import SCHEMAS, to_arrow

OTHER = list(RUNS)[1]


def only(sheet, **wanted):
    """The one row whose columns have these texts, as a mapping."""
    rows = [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]
    [found] = [row for row in rows if all(row[column] == text for column, text in wanted.items())]
    return found


def test_a_curve_stands_beside_its_line(tables, figures):
    row = only(connectivity.curves.make(View(tables, REFERENCE)), b=OTHER)
    assert row["line: barrier"] == ("0.400", "[0.360, 0.440]")
    assert row["curve: largest loss"] == ("0.080", "[0.070, 0.100]")
    assert row["below the line"] == ("0.380", "[0.330, 0.420]")
    line, curve = figures["curves"].axes[0].lines
    assert (max(line.get_ydata()), max(curve.get_ydata())) == pytest.approx((0.46, 0.08))


def test_the_best_alpha_is_chosen_on_the_other_half(tables):
    rows = [row | {"chosen_loss": abs(row["alpha"] - 1.25)} for row in tables["wise"].to_pylist()]
    view = View(tables | {"wise": to_arrow("wise", rows)}, REFERENCE)
    row = only(connectivity.wise.make(view), run=OTHER)
    assert row["best α"] == "1.25"
    assert row["NLL, best α"][0] == f"{0.06 + 0.1 * 1.25**2:.3f}"
    assert row["NLL, α = 1"][0] == "0.160"


def test_parts_and_their_sum_stand_beside_the_whole(tables, figures):
    row = only(connectivity.layerwise.make(View(tables, REFERENCE)), b="base")
    assert row["part that raises it most"] == "outside blocks"
    assert row["parts together"] == "0.020"
    assert row["everything"] == ("0.030", "[0.026, 0.034]")
    (ax,) = figures["layerwise"].axes
    cells = ax.collections[0].get_array().reshape(3, 5)
    np.testing.assert_allclose(cells[0], [-0.01, 0, 0.01, 0.02, 0.03], atol=1e-12)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "outside blocks", "all"]


def test_averages_stand_with_their_members_and_runs_without(tables):
    sheet = connectivity.soups.make(View(tables, REFERENCE))
    assert only(sheet, average=OTHER)["above its members"] == "–"
    uniform = only(sheet, average="uniform")
    assert uniform["above its members"] == ("−0.020", "[−0.030, −0.010]")
    assert uniform["rescued : lost"] == "2.1 % : 0.0 %"


def test_runs_off_a_plane_are_open_and_say_how_far(tables, figures):
    (ax,) = figures["planes"].axes
    assert [text.get_text() for text in ax.texts if text.get_text() == "3.9"] == ["3.9"]
    third = only(connectivity.planes.make(View(tables, REFERENCE)), run=list(RUNS)[2])
    assert third["distance from the plane"] == "3.90"


def test_a_plane_with_holes_is_drawn(tables):
    from raygeo.report.figures import FIGURES

    rows = tables["planes"].to_pylist()
    rows[0]["loss"] = None
    assert FIGURES["planes"].draw(View(tables | {"planes": to_arrow("planes", rows)}, REFERENCE)) is not None


def test_limits_name_the_size_of_refined_grids_and_the_halves(tables):
    path = {"run_a": "base", "probe": "p", "metric": "nll", "n": 9, "loss": 1.0}
    rows = [path | {"run_b": "a", "alpha": a} for a in (-0.5, 0.0, 0.5, 1.0, 1.5)]
    rows += [path | {"run_b": "b", "alpha": a} for a in (0.0, 0.25, 0.5, 1.0)]
    said = " ".join(limits(View({"paths": to_arrow("paths", rows)}, REFERENCE)))
    assert "3 to 4 values of α" in said
    said = " ".join(limits(View(tables, REFERENCE)))
    assert "24 held-out texts, half of the probe" in said
    assert "lie off it, at a median 94.6 %" in said


def test_summaries_of_what_lies_between_runs():
    pair = {"run_a": "sft", "run_b": "dpo"}
    rows = {
        "matched_barriers": [pair | {"probe": "solutions", "chord": 0.2}],
        "curve_barriers": [
            pair | {"shape": shape, "chord": chord} for shape, chord in (("line", 1.0), ("bezier", 0.1))
        ],
        "wise": [{"run": "dpo", "alpha": a, "chosen_loss": loss} for a, loss in ((0, 3.0), (0.5, 1.0), (1, 2.0))],
        "soups": [
            {"soup": name, "kind": kind, "confidence": 0.9, "ece": 0.05}
            for name, kind in (("dpo", "run"), ("uniform", "uniform"))
        ],
    }
    found = run_summaries({name: to_arrow(name, rows.get(name, [])) for name in SCHEMAS}, "sft")
    assert found == {
        "dpo": {
            "matched_barrier_to_reference.solutions": 0.2,
            "curve_barrier_to_reference.bezier": 0.1,
            "wise_best_alpha": 0.5,
            "token_confidence": 0.9,
            "token_ece": 0.05,
        }
    }
