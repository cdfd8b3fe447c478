from functools import partial

import numpy as np
import pytest
from view_cases import finished, view_of

from raygeo.analyses.curvature import report, sections
from raygeo.analyses.curvature.analysis import ANALYSIS as CURVATURE
from raygeo.analyses.sharpness.analysis import ANALYSIS as SHARPNESS
from raygeo.report import typeset
from raygeo.tables import LORA

RUNS = ["sft", "dpo"]
TOPS = {"base": 9.1, "sft": 13.4, "dpo": 84.0}
WHERE = {"space": "delta", "operator": "hessian", "parameters": 5000, "tokens": 640}
view = partial(view_of, runs=finished(*RUNS))


def spectrum(run, top, **where):
    """Everything that is found at one run."""
    common = WHERE | where | {"run": run}
    grid = np.linspace(-0.2 * top, 1.1 * top, 60)
    values = 0.1 + np.exp(-((grid / (0.1 * top)) ** 2))
    return [
        *(common | {"quantity": "eigenvalue", "index": i, "value": top / (1 + i), "error": 1e-3} for i in range(3)),
        common | {"quantity": "min_eigenvalue", "index": 0, "value": -0.11 * top, "error": 1e-3},
        common | {"quantity": "trace", "value": 32 * top, "error": top, "low": 30 * top, "high": 34 * top},
        *(
            common | {"quantity": "density", "index": i, "x": x, "value": y, "low": y / 2, "high": 2 * y}
            for i, (x, y) in enumerate(zip(grid, values, strict=True))
        ),
        common | {"quantity": "density_width", "value": 0.012 * top},
        *(common | {"quantity": "directional", "name": name, "value": 0.1 * top} for name in RUNS),
        common | {"quantity": "overlap", "name": "sft", "index": 3, "x": 3 / 5000, "value": 0.012},
    ]


SPECTRA = [row for run, top in TOPS.items() for row in spectrum(run, top)]
BLOCKS = [
    row
    for run, top in TOPS.items()
    for layer in range(3)
    for row in spectrum(run, top + layer, space=f"block {layer}", parameters=100)
    if row["quantity"] in ("eigenvalue", "trace")
]
PATHS = [
    {"run_a": "base", "run_b": name, "alpha": alpha, "tokens": 640, "nll": 1 - alpha / 2 + error, **at}
    for name in RUNS
    for alpha in (0.0, 0.5, 1.0)
    for at, error in (
        ({}, 0.0),
        ({"at": "base", "operator": "hessian"}, 0.02 * alpha**3),
        ({"at": name, "operator": "hessian"}, 0.04 * (1 - alpha) ** 3),
    )
]
RISES = [
    {"run": run, "measure": measure, "radius": radius, "value": 2 * radius, "nll": 0.5}
    | ({"low": radius, "high": 3 * radius, "draws": 8} if "noise" in measure else {})
    for run in TOPS
    for measure, radii in {"sam": (0.05, 0.5), "layer noise": (0.1,)}.items()
    for radius in radii
]


def draw(name, **tables):
    found = view(**tables)
    [plot] = [plot for a in (CURVATURE, SHARPNESS) for plot in a.report.figures if plot.name == name]
    return plot.draw(found)


def titles(fig):
    return [ax.get_title() for ax in fig.axes]


def test_nothing_measured_shows_nothing():
    empty = view()
    for part in (CURVATURE.report, SHARPNESS.report):
        assert [plot.draw(empty) for plot in part.figures] == [None] * len(part.figures)
        assert not any(section.sheets(empty) for section in part.sections)
        assert not any(caveat(empty) for caveat in part.caveats)
        assert not any(column.cells(empty) for column in part.columns)
        assert not [found for metrics in part.metrics for found in metrics(empty)]


def test_spectra_say_what_is_known_and_how_finely():
    fig = draw("spectra", curvature=SPECTRA)
    assert titles(fig) == RUNS
    for name, ax in zip(RUNS, fig.axes, strict=True):
        assert sum(len(line.get_xdata()) == 60 for line in ax.lines) == 2  # the base behind
        (marks,) = (line for line in ax.lines if line.get_marker() == "|")
        top = TOPS[name]
        np.testing.assert_allclose(marks.get_xdata(), [top, top / 2, top / 3, -0.11 * top])
        (least,) = (line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":")
        assert least == pytest.approx(1 / (5000 * 0.012 * top * np.sqrt(2 * np.pi)))
        assert ax.get_ylim()[0] < least
        assert [text.get_text() for text in ax.texts] == [f"σ = {typeset.significant(0.012 * top, 2)}"]
        (band,) = ax.collections
        density = [row for row in SPECTRA if row["run"] == name and row["quantity"] == "density"]
        assert {y for _, y in band.get_paths()[0].vertices} == {row[end] for row in density for end in ("low", "high")}


def test_rows_of_another_operator_or_space_are_not_mixed_in():
    other = [row | {"value": 1e9} | change for row in SPECTRA for change in ({"operator": "ggn"}, {"space": "all"})]
    (ax,) = draw("eigenvalues", curvature=SPECTRA + other).axes
    assert max(max(line.get_xdata()) for line in ax.lines) < 100
    assert ax.get_title() == "eigenvalues (hessian, delta)"
    assert [label.get_text() for label in ax.get_yticklabels()] == list(TOPS)


def test_curvature_along_deltas_is_a_matrix_of_runs():
    (ax,) = draw("directional", curvature=SPECTRA).axes
    cells = ax.collections[0].get_array().reshape(3, 2)
    np.testing.assert_allclose(cells, [[0.1 * top] * 2 for top in TOPS.values()])


def test_blocks_have_their_own_eigenvalues_layer_by_layer():
    tops, means = draw("block-curvature", curvature=SPECTRA + BLOCKS).axes
    assert [list(line.get_xdata()) for line in tops.lines] == [[0, 1, 2]] * len(TOPS)
    np.testing.assert_allclose(tops.lines[0].get_ydata(), [9.1, 10.1, 11.1])
    np.testing.assert_allclose(means.lines[0].get_ydata(), [0.32 * top for top in (9.1, 10.1, 11.1)])


def test_predicted_paths_stand_beside_measured_ones():
    fig = draw("expansions", expansions=PATHS)
    assert titles(fig) == RUNS
    measured, from_base, from_run = (line.get_ydata() for line in fig.axes[0].lines)
    alphas = np.array([0, 0.5, 1])
    np.testing.assert_allclose(measured, 1 - alphas / 2)
    np.testing.assert_allclose(from_base - measured, 0.02 * alphas**3, atol=1e-12)
    np.testing.assert_allclose(from_run - measured, 0.04 * (1 - alphas) ** 3, atol=1e-12)


def test_sharpness_has_a_panel_for_each_measure_with_intervals():
    fig = draw("sharpness", sharpness=RISES)
    assert titles(fig) == ["SAM: one step", "mean under relative noise, σ / RMS of the parameter = 0.1"]
    bars = [line.get_xdata() for line in fig.axes[1].lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(bars, [[0.1, 0.3]] * 3)


def test_columns_of_the_results_are_of_the_first_space():
    top, trace = CURVATURE.report.columns
    found = view(curvature=SPECTRA + [row | {"space": "all", "value": 1e9} for row in SPECTRA])
    assert (top.title, top.cells(found)["sft"]) == ("top eigenvalue", "13.4")
    assert (trace.title, trace.cells(found)["base"]) == ("trace", ("291", "[273, 309]"))


def test_metrics_are_of_the_first_space_of_each_operator():
    rows = [
        {"run": "base", "operator": operator, "space": space, "quantity": quantity, "index": index, "value": value}
        for operator, factor in ((None, 9.0), ("hessian", 1.0), ("ggn", 10.0))
        for space, value in (("delta", 5.0 * factor), ("span", 2.0))
        for quantity in ("eigenvalue", "trace")
        for index in ((0, 1) if quantity == "eigenvalue" else (None,))
    ]
    assert list(report.metrics(view(curvature=rows))) == [
        ("base", "top_eigenvalue/hessian", 5.0),
        ("base", "trace/hessian", 5.0),
        ("base", "top_eigenvalue/ggn", 50.0),
        ("base", "trace/ggn", 50.0),
    ]
    [metrics] = SHARPNESS.report.metrics
    assert ("base", "sharpness/layer_noise/0.1", 0.2) in list(metrics(view(sharpness=RISES)))


def test_tables_give_errors_shares_and_how_far_predictions_are_off():
    found = view(curvature=SPECTRA, expansions=PATHS, sharpness=RISES)
    [(_, _, sheet)] = sections.curvature.sheets(found)
    assert [row[0] for row in sheet.rows] == list(TOPS)
    assert sheet.rows[1][1:5] == ["hessian, delta", ("13.4  6.70  4.47", "± 0.0010"), "−1.47", ("429", "[402, 456]")]
    [(_, _, sheet)] = sections.overlaps.sheets(found)
    assert sheet.rows[0] == ["base", "sft", "hessian, delta", "3", "1.2 %", "0.060 %", "20"]
    [(_, _, sheet)] = sections.predictions.sheets(found)
    assert sheet.rows[:2] == [
        ["base", "sft", "base", "hessian", "0.500", "0.020"],
        ["base", "sft", "sft", "hessian", "0.500", "0.040"],
    ]
    [(_, _, sheet)] = SHARPNESS.report.sections[0].sheets(found)
    assert sheet.columns == ["run", "sam 0.05", "sam 0.5", "layer noise 0.1"]
    assert sheet.rows[0] == ["base", "0.100", "1.00", ("0.200", "[0.100, 0.300]")]


def said(**tables):
    found = view(**tables)
    parts = [*CURVATURE.report.caveats, *SHARPNESS.report.caveats]
    return " ".join(sentence for caveat in parts for sentence in caveat(found))


def test_caveats_apply_to_what_was_measured():
    assert said(curvature=SPECTRA).startswith("Curvature is that of one probe's NLL over 640 tokens, the same for all")
    assert "LoRA factors" not in said(curvature=SPECTRA)
    assert "LoRA factors" in said(curvature=[row | {"space": LORA} for row in SPECTRA])
    assert "do not add up" not in said(curvature=SPECTRA)
    assert "do not add up" in said(curvature=BLOCKS)
    assert said(expansions=[row for row in PATHS if "at" not in row]) == ""
    assert "within the span of the runs' deltas" in said(expansions=PATHS)
    assert "rises are below" not in said(sharpness=RISES)
    lost = [row | {"value": 1e-8} for row in RISES[:2]]
    assert "2 of 9 rises are below what fp32 resolves" in said(sharpness=RISES[2:] + lost)
    assert "1 of 9 rises is below" in said(sharpness=RISES[1:] + lost[:1])


def test_caveats_speak_of_estimates_that_are_there():
    assert "Traces and densities are estimates" in said(curvature=SPECTRA)
    assert "Densities are resolved" in said(curvature=SPECTRA)
    traces = [row for row in SPECTRA if "density" not in row["quantity"]]
    assert "Traces are estimates" in said(curvature=traces)
    assert "ensities" not in said(curvature=traces)
    assert "estimates" not in said(curvature=[row for row in traces if row["quantity"] == "eigenvalue"])
    off = {"run": "sft", "quantity": "product_error", "value": 2e-5}
    assert "off by up to 0.0020 %" in said(curvature=[*SPECTRA, WHERE | off])


def test_one_run_is_one():
    [found] = report.flattened(view(curvature=spectrum("sft", 13.4)))
    assert "is 13.4 (sft) at the run." in found.text
