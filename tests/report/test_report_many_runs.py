"""The page of many runs: configurations with their seeds as spread, legends that end, tables that can be filtered."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from view_cases import finished, row_of, view_of

from raygeo.analyses import registry
from raygeo.analyses.similarity.report import cosine_heatmap
from raygeo.analyses.soups.report import averages
from raygeo.report import sheets
from raygeo.report.page import PageContext, draw_figures, render_page
from raygeo.report.parts import Parts
from raygeo.report.plots import WRITTEN, legend, log, make_panels, name_rows
from raygeo.report.results import configurations, mcnemar
from raygeo.report.training import accuracy, nll_curves
from raygeo.report.view import LEGEND
from raygeo.tables import BASE

SEEDS = 3
NAMES = [f"loss{i}-s{seed}" for i in range(12) for seed in range(SEEDS)]


def trained(name, loss, lr=1e-4):
    """A row of the table of runs; the last letter of the name is the seed."""
    training = {"lr": lr, "seed": int(name[-1]), "init_seed": 0, "lora": None}
    return {"run": name, "key": name, "loss": loss, "lr": lr, "seed": int(name[-1]), "status": "finished"} | {
        "params": json.dumps({"loss": {"type": loss}, "training": training})
    }


@pytest.fixture(scope="module")
def view():
    """Twelve losses with three seeds, an accuracy and two steps each."""
    runs = [trained(name, name[:-3]) for name in NAMES]
    share = {name: (20 + i) / 100 for i, name in enumerate((BASE, *NAMES))}
    accuracies = [
        {"run": name, "benchmark": "heldout", "n": 100, "correct": round(100 * value), "accuracy": value}
        | {"low": value - 0.1, "high": value + 0.1, "truncated": 0, "no_answer": 0, "undecided": 0}
        for name, value in share.items()
    ]
    curves = [
        {"run": name, "step": step, "metric": "nll", "value": share[name] / step} for name in NAMES for step in (1, 2)
    ]
    tests = [
        {"benchmark": "heldout", "run_a": a, "run_b": b, "n": 100, "only_a": 1, "only_b": 2, "p_exact": 1, "p_holm": 1}
        for i, a in enumerate(NAMES)
        for b in NAMES[i + 1 :]
    ]
    cosines = [
        {"run_a": a, "run_b": b, "scope": "global", "name": "", "cosine": 0.9 if a[:-3] == b[:-3] else 0.1}
        for a in NAMES
        for b in NAMES
        if a != b
    ]
    return view_of(
        NAMES[0], runs=runs, accuracy=accuracies, training_curves=curves, mcnemar=tests, similarity=cosines[::-1]
    )


def test_configurations_have_the_mean_of_their_runs_and_its_range(view):
    sheet = configurations(view)
    assert [row[0] for row in sheet.rows] == [BASE, *(f"loss{i}-s0" for i in reversed(range(12)))], "the best first"
    assert sheet.rows[0][1:] == ["20.0 %", "–", "–", "–", "–"]
    row = row_of(sheet, "loss4-s0")
    assert (row["runs"], row["finished"], row["accuracy"]) == ("3", "3", ("34.0 %", "[33.0, 35.0]"))


def test_lines_are_means_over_seeds_with_their_range(view):
    fig = nll_curves.draw(view)
    (ax,) = fig.axes
    assert len(ax.lines) == len(ax.collections) == 12
    np.testing.assert_allclose(ax.lines[4].get_ydata(), [0.34, 0.17])
    band = ax.collections[4].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(0.165), pytest.approx(0.35))
    assert [text.get_text() for text in fig.legends[0].texts] == [f"loss{i}-s0 and 2 seeds" for i in range(12)]


def test_smoothed_curves_are_drawn_at_steps_as_close_as_their_smoothing_and_to_their_ends():
    rows = [{"run": name, "step": step, "metric": "nll", "value": step} for name in NAMES for step in range(1, 401)]
    (ax,) = nll_curves.draw(view_of(NAMES[0], runs=finished(*NAMES), training_curves=rows)).axes
    for line in ax.lines:
        steps = line.get_xdata()
        assert (steps[0], steps[-1]) == (1, 400)
        assert len(steps) == 51
        np.testing.assert_allclose(line.get_ydata()[1:-1], steps[1:-1] - 0.5)


def test_lines_of_losses_of_one_colour_differ_by_their_dashes(view):
    """Twelve losses and six colours, in the figure as in its legend."""
    fig = nll_curves.draw(view)
    for found in (fig.axes[0].lines, fig.legends[0].get_lines()):
        assert len({line.get_color() for line in found}) == 6
        assert len({(line.get_color(), line.get_linestyle()) for line in found}) == 12


def test_configurations_of_one_loss_differ_by_their_dashes_while_all_are_named():
    """Two seeds at three rates and seven at a fourth: configurations of one loss, drawn as their legend has them."""
    runs = [f"sft-lr{rate}-s{seed}" for rate, seeds in ((1, 2), (2, 2), (3, 2), (4, 7)) for seed in range(seeds)]
    table = [trained(run, "sft", float(run[6])) for run in runs]
    curves = [{"run": run, "step": step, "metric": "nll", "value": 1.0} for run in runs for step in (1, 2)]
    view = view_of(runs[0], runs=table, training_curves=curves)
    assert len({look["linestyle"] for run, look in view.group_lines.items() if run != BASE}) == 4
    fig = nll_curves.draw(view)
    for found in (fig.axes[0].lines, fig.legends[0].get_lines()):
        assert [line.get_linestyle() for line in found] == ["-", "--", "--", "--"]
    assert [text.get_text() for text in fig.legends[0].texts][2:] == [
        "sft-lr3-s0 and 1 seed",
        "sft-lr4-s0 and 6 seeds",
    ]


def test_legends_end_and_say_how_much_is_left_out():
    names = [f"{'x' * i}-{i}" for i in range(1, LEGEND + 4)]
    fig, _ = make_panels(1, 1, 3)
    legend(fig, view_of(names[0], runs=finished(*names)), names)
    [drawn] = fig.legends
    assert len(drawn.texts) == LEGEND
    assert drawn.texts[-1].get_text() == "and 4 more configurations"
    assert [line.get_linestyle() for line in drawn.get_lines()[-2:]] == ["--", "None"]


def test_rows_are_named_as_far_as_there_is_room():
    for height, named in ((11.0, 40), (2.0, 8)):
        fig, (ax,) = make_panels(1, 1, height)
        name_rows(ax, [f"run {i}" for i in range(40)])
        FigureCanvasAgg(fig).draw()
        boxes = [tick.label1.get_window_extent() for tick in ax.yaxis.get_major_ticks()]
        assert len(boxes) == named
        assert all(below.y1 <= above.y0 for above, below in pairwise(boxes))


@pytest.mark.parametrize(("letters", "columns"), [(2, 5), (17, 5), (40, 2), (300, 1)])
def test_legends_are_no_wider_than_their_figure(letters, columns):
    names = [f"{'x' * (letters - 2)}{i}" for i in range(10, 20)]
    fig, _ = make_panels(1, 1, 3)
    legend(fig, view_of(names[0], runs=finished(*names)), names)
    FigureCanvasAgg(fig).draw()
    [drawn] = fig.legends
    box = drawn.get_window_extent()
    assert letters > 100 or (box.x0 >= 0 and box.x1 <= fig.bbox.x1)
    assert len({round(text.get_window_extent().x0) for text in drawn.texts}) == columns


def test_long_logarithmic_axes_name_powers_of_ten_alone():
    for high, named in ((200, ["1", "2", "5", "10", "20", "50", "100", "200"]), (5000, ["1", "10", "100", "1000"])):
        fig, (ax,) = make_panels(1, 1, 3)
        ax.plot([1, high], [0, 1])
        log(ax, "x")
        ax.set_xlim(1, high)
        FigureCanvasAgg(fig).draw()
        said = [tick.label1.get_text() for tick in ax.xaxis.get_major_ticks() if 1 <= tick.get_loc() <= high]
        assert [text for text in said if text] == named


def test_runs_of_one_configuration_share_a_row(view):
    (ax,) = accuracy.draw(view).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [BASE, *NAMES[::SEEDS]]


def test_large_heatmaps_cluster_and_name_what_fits(view):
    ax, bar = cosine_heatmap.draw(view).axes
    assert not ax.texts
    assert len(ax.get_yticks()) <= WRITTEN < len(NAMES)
    values = np.asarray(ax.collections[0].get_array()).reshape(len(NAMES), -1)
    blocks = np.kron(np.eye(12), np.ones((SEEDS, SEEDS)))
    np.testing.assert_allclose(values, np.where(blocks > 0, 0.9, 0.1) + 0.1 * np.eye(len(NAMES)))
    assert bar.get_ylim() == (-1, 1)


def test_tests_are_shown_of_one_run_a_configuration(view):
    ((_, _, sheet),) = mcnemar.sheets(view)
    assert list(sheet.columns) == ["run", *NAMES[::SEEDS]]


def test_long_tables_are_cut_and_say_so(view):
    long = sheets.section("Rows: {rows}", "All.")(lambda _: sheets.Sheet(["n"], [(str(i),) for i in range(501)]))
    ((title, prose, sheet),) = long.sheets(view)
    assert title == "Rows: 501 rows"
    assert prose == "All. The first 100 of 501 rows are shown; the tables in the store have all."
    assert len(sheet.rows) == 100


def test_long_tables_are_folded(view):
    parts = Parts(sections=tuple(sheets.section(f"{n} rows")(rows_of(n)) for n in (24, 25)))
    page = render_page(view, PageContext("many", "tiny", NAMES[0], "now"), {}, parts)
    assert "<h3>24 rows</h3>" in page
    assert re.search(r"<details[^>]*><summary>25 rows</summary>", page)


def rows_of(count):
    return lambda view: sheets.Sheet(["n"], [(str(i),) for i in range(count)])


def test_averages_of_many_runs_name_the_first(view):
    soups = [{"soup": name, "kind": "average", "members": NAMES[:n]} for name, n in (("a", 13), ("b", 14))]
    sheet = averages.make(view_of(NAMES[0], soups=soups))
    assert row_of(sheet, "a")["members"] == ", ".join(NAMES[:13])
    assert row_of(sheet, "b")["members"] == ", ".join(NAMES[:12]) + " and 2 more"


def test_the_page_has_both_tables_and_filters(view):
    parts = Parts(figures=(accuracy,))
    page = render_page(view, PageContext("many", "tiny", NAMES[0], "now"), draw_figures(view, parts), parts)
    assert "36 runs of 12 configurations" in page
    assert "Results of every run</summary>" in page
    few = registry.view({"runs": view.tables["runs"].slice(0, 12)}, NAMES[0])
    page = render_page(few, PageContext("few", "tiny", NAMES[0], "now"), {}, parts)
    assert "Results of every run</summary>" not in page
