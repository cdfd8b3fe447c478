"""What the page and the tracker show of the loss between runs."""

from functools import partial
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import view_cases

from raygeo.analyses.paths.report import barrier_cell
from raygeo.report.sheets import Section
from raygeo.report.view import View

NAMES = ("paths", "matched_paths", "curves", "layerwise", "soups", "wise", "planes")
ANALYSES = {name: import_module(f"raygeo.analyses.{name}.analysis").ANALYSIS for name in NAMES}
PAIR = {"run_a": "sft", "run_b": "dpo"}
SIZES = {"n": 24, "tokens": 700, "confidence": 0.91, "agreement": 0.89, "ece": 0.021, "problems": 48}
view_of = partial(view_cases.view_of, runs=view_cases.finished("sft", "dpo", "rft"))


def only(section: Section, view: View, **wanted):
    """The one row whose columns have these texts, as a mapping."""
    [(_, _, sheet)] = section.sheets(view)
    rows = [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]
    [found] = [row for row in rows if all(row[column] == text for column, text in wanted.items())]
    return found


def sheet_row(name, view, **wanted):
    [section] = ANALYSES[name].report.sections
    return only(section, view, **wanted)


def axes(name, view, place=0):
    return ANALYSES[name].report.figures[place].draw(view).axes


def metrics(view):
    return {(run, what): x for a in ANALYSES.values() for make in a.report.metrics for run, what, x in make(view)}


def caveats(view):
    return " ".join(
        said for analysis in ANALYSES.values() for caveat in analysis.report.caveats for said in caveat(view)
    )


def test_without_rows_nothing_is_shown():
    view = view_of()
    for analysis in ANALYSES.values():
        parts = analysis.report
        assert [plot.draw(view) for plot in parts.figures] == [None] * len(parts.figures)
        assert [section.sheets(view) for section in parts.sections] == [[]] * len(parts.sections)
        assert [dict(column.cells(view)) for column in parts.columns] == [{}] * len(parts.columns)
    assert metrics(view) == {}
    assert caveats(view) == ""


def test_the_analyses_stand_in_order_and_say_what_they_need():
    assert [a.order for a in ANALYSES.values()] == list(range(200, 270, 10))
    assert all(a.question.endswith("?") for a in ANALYSES.values())
    assert [name for name, a in ANALYSES.items() if not a.default] == ["matched_paths", "planes"]
    assert [name for name, a in ANALYSES.items() if "problems" in a.needs] == [
        "paths",
        "matched_paths",
        "soups",
        "wise",
    ]
    assert all("solutions" in a.needs for a in ANALYSES.values())


def barrier(a, b, probe, chord, metric="nll"):
    ends = {"chord": chord, "chord_low": chord - 0.01, "chord_high": chord + 0.01, "chord_alpha": 0.5}
    return {"run_a": a, "run_b": b, "probe": probe, "metric": metric, "mean": chord + 0.1, "n": 9, **ends}


def test_the_result_column_holds_barriers_to_the_reference_on_the_first_probe():
    rows = [
        barrier("base", "dpo", "solutions", 7.0),
        barrier("dpo", "sft", "solutions", 0.25),
        barrier("sft", "dpo", "answers", 3.0),
        barrier("sft", "dpo", "problems", 0.5, "accuracy"),
        barrier("base", "sft", "solutions", 0.125),
    ]
    view = view_of(barriers=rows)
    [column] = ANALYSES["paths"].report.columns
    assert column.title == "barrier to ref."
    assert column.cells(view) == {"dpo": ("0.250", "[0.240, 0.260]"), "base": ("0.125", "[0.115, 0.135]")}
    found = metrics(view)
    assert found["dpo", "barrier_to_reference/solutions"] == 0.25
    assert found["dpo", "barrier_to_reference/problems"] == 0.5
    assert sheet_row("paths", view, probe="problems, error rate")["above the chord"] == ("0.500", "[0.490, 0.510]")


def test_paths_start_at_the_reference_whichever_way_they_were_measured():
    path = {"probe": "p", "metric": "nll", "n": 9}
    there = [PAIR | path | {"alpha": a, "nll": nll} for a, nll in ((0, 0.5), (0.25, 0.4), (1, 0.9))]
    back = [row | {"run_a": "dpo", "run_b": "sft", "alpha": 1 - row["alpha"]} for row in there]
    for rows in (there, back):
        [line] = [line for line in axes("paths", view_of(paths=rows))[0].lines if len(line.get_xdata()) == 3]
        np.testing.assert_allclose(line.get_xdata(), [0, 0.25, 1])
        np.testing.assert_allclose(line.get_ydata(), [0.5, 0.4, 0.9])
        assert ANALYSES["paths"].report.figures[1].draw(view_of(paths=rows)) is None, "the base is not an end of it"


def test_ends_of_paths_are_metrics_and_refined_grids_are_named():
    path = {"run_a": "base", "probe": "solutions", "metric": "nll", "n": 9}
    rows = [path | {"run_b": "sft", "alpha": a, "nll": 1 - a / 2} for a in (-0.5, 0.0, 0.5, 1.0, 1.5)]
    rows += [path | {"run_b": "dpo", "alpha": a, "nll": 1.0} for a in (0.0, 0.25, 0.5, 1.0)]
    asked = {"run_b": "sft", "probe": "problems", "metric": "accuracy", "accuracy": 0.5}
    rows += [path | asked | {"alpha": a} for a in (0.0, 1.0)]
    view = view_of(paths=rows)
    assert metrics(view) == {
        ("base", "nll/solutions"): 1.0,
        ("sft", "nll/solutions"): 0.5,
        ("dpo", "nll/solutions"): 1.0,
    }
    assert "sampled at 3 to 4 values of α for the NLL and 2 values of α for accuracy" in caveats(view)
    titles = [ax.get_title() for ax in axes("paths", view, 1)]
    assert titles == ["solutions: NLL, nats a token", "problems: accuracy, %"]


def test_matched_barriers_stand_with_their_scales():
    rows = [barrier("sft", "dpo", "solutions", 0.2) | {"scale_a": 1.0, "scale_b": 0.64, "norm": 2.94}]
    points = [
        PAIR | {"probe": "solutions", "metric": "nll", "alpha": a, "nll": 0.06 + a * (1 - a)} for a in (0, 0.5, 1)
    ]
    view = view_of(matched_barriers=rows, matched_paths=points)
    assert sheet_row("matched_paths", view)["scales"] == "1.00 : 0.640"
    assert metrics(view) == {("dpo", "matched_barrier_to_reference/solutions"): 0.2}
    assert max(axes("matched_paths", view)[0].lines[0].get_ydata()) == pytest.approx(0.31)


@pytest.fixture
def bent():
    points, barriers = [], []
    for shape, height in (("line", 0.4), ("bezier", 0.02)):
        ts = np.linspace(0, 1, 21)
        points += [PAIR | {"shape": shape, "t": t, "nll": 0.06 + 4 * height * t * (1 - t), "n": 24} for t in ts]
        top = {"max_nll": 0.06 + height, "max_t": 0.5, "max_nll_low": 0.05 + height, "max_nll_high": 0.08 + height}
        chord = {"chord": height, "chord_t": 0.5, "chord_low": 0.9 * height, "chord_high": 1.1 * height}
        barriers.append(PAIR | {"shape": shape, "n": 24} | top | chord)
    barriers[1] |= {"below": 0.38, "below_low": 0.33, "below_high": 0.42, "bend": 0.61}
    return view_of(curve_paths=points, curve_barriers=barriers)


def test_a_curve_stands_beside_its_line(bent):
    row = sheet_row("curves", bent, b="dpo")
    assert row["line: barrier"] == ("0.400", "[0.360, 0.440]")
    assert row["curve: largest NLL"] == ("0.080", "[0.070, 0.100]")
    assert row["below the line"] == ("0.380", "[0.330, 0.420]")
    line, curve = axes("curves", bent)[0].lines
    assert (max(line.get_ydata()), max(curve.get_ydata())) == pytest.approx((0.46, 0.08))
    assert metrics(bent) == {("dpo", "curve_barrier_to_reference/bezier"): 0.02}
    assert "24 held-out texts, half of the probe" in caveats(bent)


def test_parts_and_their_sum_stand_beside_the_whole():
    rows = []
    for b in ("dpo", "base"):
        for place, part in enumerate(("0", "1", "2", "outside blocks", "all")):
            for alpha in (0.5, 1.0):
                rise = 0.01 * (place - 1) * alpha
                rows.append(
                    {"run_a": "sft", "run_b": b, "kind": "block", "part": part, "alpha": alpha, "n": 48}
                    | {"nll": 0.06 + rise, "rise": rise, "rise_low": rise - 0.004, "rise_high": rise + 0.004}
                    | {"excess": 0.001 * place * (1 - alpha)}
                )
    view = view_of(layerwise=rows)
    row = sheet_row("layerwise", view, b="base")
    assert row["part that raises it most"] == "outside blocks"
    lower = view_of(layerwise=[row | {"rise": -abs(row["rise"])} for row in rows])
    gained = sheet_row("layerwise", lower, b="base")
    assert (gained["part that raises it most"], gained["its rise"]) == ("none", "–")
    assert row["parts together"] == "0.020"
    assert row["everything"] == ("0.030", "[0.026, 0.034]")
    assert row["on the way"] == ("0.002", "all, α = 0.5")
    (ax,) = axes("layerwise", view)
    cells = ax.collections[0].get_array().reshape(2, 5)
    np.testing.assert_allclose(cells[0], [-0.01, 0, 0.01, 0.02, 0.03], atol=1e-12)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "outside blocks", "all"]


def test_averages_stand_with_their_members_and_runs_without():
    nll = {"nll": 0.07, "nll_low": 0.06, "nll_high": 0.08, "accuracy": 0.8}
    alone = [{"soup": name, "kind": "run", "members": [name]} | nll | SIZES for name in ("base", "sft", "dpo")]
    uniform = {"soup": "uniform", "kind": "uniform", "members": ["sft", "dpo"], "barrier": -0.02} | nll | SIZES
    uniform |= {"barrier_low": -0.03, "barrier_high": -0.01, "false_false_true": 1 / 48, "true_true_false": 0.0}
    view = view_of(soups=[*alone, uniform | {"confidence": 0.5}])
    assert sheet_row("soups", view, average="dpo")["above its members"] == "–"
    row = sheet_row("soups", view, average="uniform")
    assert row["above its members"] == ("−0.020", "[−0.030, −0.010]")
    assert (row["members"], row["rescued : lost"]) == ("sft, dpo", "2.1 % : 0.0 %")
    assert metrics(view)["dpo", "token_confidence"] == 0.91
    assert {run for run, _ in metrics(view)} == {"base", "sft", "dpo"}
    said = caveats(view)
    assert "measured on 24 texts, half of the probe" in said
    assert "over 48 problems, so one problem is 2.1 points" in said
    assert "the greedy soup was chosen on the other half, so its likelihood is not" in said
    assert "base were" not in said


def test_the_best_alpha_is_chosen_on_the_other_half():
    rows = [
        {"run": "dpo", "alpha": alpha, "chosen_nll": abs(alpha - 1.25), "nll": 0.06 + 0.1 * alpha**2}
        | {"nll_low": 0.05, "nll_high": 0.2, "accuracy": 0.4 * alpha, "false_false_true": 0.02, "true_true_false": 0.0}
        | SIZES
        for alpha in (0.0, 0.5, 1.0, 1.25, 1.5)
    ]
    view = view_of(wise=rows)
    row = sheet_row("wise", view, run="dpo")
    assert row["best α"] == "1.25"
    assert "Lines from the base were measured on 24 texts, half of the probe; the best α was chosen" in caveats(view)
    assert row["NLL, best α"][0] == f"{0.06 + 0.1 * 1.25**2:.3f}"
    assert row["NLL, α = 1"][0] == "0.160"
    assert metrics(view) == {("dpo", "wise_best_alpha"): 1.25}
    nll, accuracy, *_ = axes("wise", view)
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [0, 20, 40, 50, 60])
    assert nll.lines[0].get_ydata()[0] == 0.06


@pytest.fixture
def plane():
    corners = {"run_a": "base", "run_b": "sft", "run_c": "dpo"}
    grid = [
        corners | {"x": x, "y": y, "nll": 0.05 + 0.02 * ((x - 2) ** 2 + (y - 1) ** 2), "n": 48}
        for x in np.linspace(-1, 4, 7)
        for y in np.linspace(-1, 3, 7)
    ]
    places = {"base": (0, 0, 0), "sft": (2.94, 0, 0), "dpo": (2.5, 2.7, 0), "rft": (1.2, 0.6, 3.9)}
    runs = [
        corners | {"run": name, "x": x, "y": y, "residual": away, "nll": 0.07, "n": 48}
        for name, (x, y, away) in places.items()
    ]
    return {"planes": grid, "plane_runs": runs}


def test_runs_off_a_plane_are_open_and_say_how_far(plane):
    view = view_of(**plane)
    ax, bar = axes("planes", view)
    assert bar.get_ylabel() == "NLL, nats a token"
    assert [text.get_text() for text in ax.texts if text.get_text() == "3.9"] == ["3.9"]
    assert sheet_row("planes", view, run="rft")["distance from the plane"] == "3.90"
    assert "lie off it, at a median 94.6 %" in caveats(view)


def test_a_plane_with_holes_is_drawn(plane):
    plane["planes"][0]["nll"] = None
    assert len(axes("planes", view_of(**plane))) == 2  # the plane and the bar of its colours


def test_a_barrier_that_is_told_from_0_does_not_read_so():
    def cell(value, low, high):
        return barrier_cell(pd.Series({"chord": value, "chord_low": low, "chord_high": high}), "chord")

    assert cell(8.4e-5, 3.8e-5, 1.3e-4) == ("8.4 × 10⁻⁵", "[3.8 × 10⁻⁵, 1.3 × 10⁻⁴]")
    assert cell(8.4e-5, 0.0, 1.3e-4) == ("0.000", "[0.000, 0.000]")
    assert cell(0.5, 0.25, 0.75) == ("0.500", "[0.250, 0.750]")
