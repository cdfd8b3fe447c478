"""Figures of every study, whatever is analysed, and how a run looks in all of them."""

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from report_study import DIVERGED, RUNS
from view_cases import finished, view_of

from raygeo.report.embed import SVG_LIMIT, embed
from raygeo.report.hover import name_cells, points
from raygeo.report.plots import make_panels
from raygeo.report.style import run_styles
from raygeo.report.training import accuracy


def lines(ax, colour, minimum=2):
    """Data of the lines in ``ax`` of one colour with at least ``minimum`` points."""
    return [x for x in ax.lines if to_rgb(x.get_color()) == to_rgb(colour) and len(x.get_xdata()) >= minimum]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_accuracy_shows_the_base_intervals_and_numbers(tables, figures):
    (ax,) = figures["accuracy"].axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base", *RUNS]
    assert [text.get_text() for text in ax.texts][:2] == ["42.0 %", "83.3 %"]
    base = tables["accuracy"].to_pylist()[0]
    bar = next(line for line in ax.lines if len(line.get_xdata()) == 2 and list(line.get_ydata()) == [0, 0])
    np.testing.assert_allclose(bar.get_xdata(), [100 * base["low"], 100 * base["high"]])


def test_several_answers_a_problem_are_not_counted_as_problems():
    row = {"n": 24, "correct": 12, "accuracy": 0.5, "low": 0.3, "high": 0.7, "run": "sft"}
    once = row | {"benchmark": "gsm8k", "problems": 24, "samples": 1}
    often = row | {"benchmark": "aime", "problems": 3, "samples": 8}
    drawn = accuracy.draw(view_of(runs=finished("sft"), accuracy=[once, often]))
    assert [ax.get_title() for ax in drawn.axes] == ["gsm8k, 24 problems", "aime, 3 problems, 8 answers each"]


def test_cells_answer_where_they_are_drawn(figures):
    """Layers of the base rise from the lower edge of their panel: the first corner is the lower left one."""
    fig = figures["layer-cka"]
    FigureCanvasAgg(fig).draw()
    title, down, across, (left, low), (right, high), rows, columns, values = points(fig)["cells"][1]
    assert (title, down, across) == (f"CKA of {next(iter(RUNS))}", "layer of the base", "layer of the run")
    assert (rows, columns) == (["0", "1", "2"], ["0", "1", "2"])
    assert right - left == pytest.approx(low - high, abs=0.1), "square, and y counts from the top"
    box = fig.axes[1].bbox
    np.testing.assert_allclose([left, right], np.multiply([box.x0, box.x1], 72 / fig.dpi), atol=0.05)
    np.testing.assert_allclose(np.exp(-np.abs(np.subtract.outer(range(3), range(3)))).ravel() * values[0], values, 1e-3)


def test_a_path_of_steps_ends_where_its_line_does():
    """Rounded steps do not add up to a drift: every point is where the canvas has it, to a hundredth of a point."""
    fig, (ax,) = make_panels(1, 1, 3)
    ax.plot(np.arange(2000), np.random.default_rng(0).normal(size=2000).cumsum(), gid="run:walk", rasterized=False)
    text = embed(fig, "walk", "a walk")
    [line] = fig.axes[0].lines
    expected = ax.transData.transform(line.get_xydata()) * 72 / fig.dpi
    [group] = re.findall(r'<g data-run="walk">(.*?)</g>', text)
    [path] = re.findall(r' d="(M[^"]*)"', group)
    numbers = np.array(re.findall(r"-?\d*\.?\d+(?:e-\d+)?", path), float).reshape(-1, 2)
    drawn = numbers.cumsum(axis=0)
    np.testing.assert_allclose(
        drawn[[0, -1]], [[x, 72 * fig.get_figheight() - y] for x, y in expected[[0, -1]]], atol=0.011
    )
    assert set(re.findall("[a-zA-Z]", path)) == {"M", "l"}


def test_rows_and_columns_of_cells_are_not_mistaken():
    fig, (ax,) = make_panels(1, 1, 3)
    cells = pd.DataFrame([[1, 2, 3], [4, 5, np.nan]], index=["up", "down"], columns=["a", "b", "c"])
    name_cells(ax.pcolormesh(cells.to_numpy()), cells, "count")
    FigureCanvasAgg(fig).draw()
    [[title, _, _, (left, low), (right, high), rows, columns, values]] = points(fig)["cells"]
    assert (title, rows, columns, values) == ("count", ["up", "down"], ["a", "b", "c"], [1, 2, 3, 4, 5, None])
    box = ax.bbox
    assert (left, right) == pytest.approx((box.x0 * 72 / fig.dpi, box.x1 * 72 / fig.dpi), abs=0.1)
    assert low > high


def test_a_figure_of_any_name_keeps_its_looks():
    fig, (ax,) = make_panels(1, 1, 3)
    ax.plot([0, 1], [0, 1])
    text = embed(fig, "2d.map of:all", "a line")
    [rules] = re.findall(r"<style>(.*?)</style>", text)
    names = re.findall(r"(?:^|\})\.([^{]*)\{", rules)
    assert names
    assert all(re.fullmatch(r"[_a-zA-Z][\w-]*", name) for name in names)
    assert set(names) == set(re.findall(r'class="([^"]*\d)"', text))


def test_a_diverged_run_is_drawn_but_does_not_set_the_scale(figures):
    (ax,) = figures["nll"].axes
    assert ax.get_ylim()[1] < 0.5
    assert DIVERGED in legend(figures["nll"])


def test_objectives_have_a_panel_a_loss(figures):
    titles = [ax.get_title(loc="left") for ax in figures["objective"].axes]
    assert titles == ["sft", "rft", "dft", "rift", "grpo", "dpo"]


def test_runs_are_named_in_legends_in_the_studys_order(figures):
    partners = list(RUNS)[1:]
    assert legend(figures["nll"]) == [*RUNS, DIVERGED]
    assert legend(figures["paths"]) == partners
    assert legend(figures["base-paths"]) == list(RUNS)
    assert legend(figures["map"]) == ["base", *RUNS]


def test_a_loss_keeps_its_colour_in_every_figure(view, figures):
    colour = view.styles["rft-lr5e-05-s0"].colour
    for name in ("nll", "norms", "angles", "paths", "base-paths", "cka", "drift"):
        assert lines(figures[name].axes[0], colour), name


def test_a_run_looks_alone_as_it_does_among_all(view):
    for run in view.names:
        assert view.of(run).names == [run]
        assert view.of(run).styles[run] == view.styles[run]


def test_variants_of_a_loss_differ_in_line_and_marker():
    styles = run_styles({"a": "dpo", "b": "dpo", "c": "sft"}, "base")
    assert styles["a"].colour == styles["b"].colour != styles["c"].colour
    assert styles["a"].filled
    assert not styles["b"].filled
    assert (styles["a"].dashes, styles["a"].marker) != (styles["b"].dashes, styles["b"].marker)


def test_an_unknown_loss_takes_a_free_colour():
    styles = run_styles({"a": "sft", "b": "mine", "c": "yours"}, "base")
    assert len({style.colour for style in styles.values()}) == 4


def test_losses_of_one_colour_look_different():
    losses = [f"loss{i}" for i in range(12)]
    styles = run_styles({loss: loss for loss in losses}, "base")
    assert len({styles[loss].colour for loss in losses}) == 6
    for look in ("dashes", "loss_dashes"):
        assert len({(styles[loss].colour, getattr(styles[loss], look)) for loss in losses}) == 12


def test_planes_tell_what_was_measured_next_to_the_pointer(tables, figures):
    told, down, across, *_, rows, columns, values = points(figures["planes"])["cells"][0]
    assert (told, down, across) == (
        "NLL, nats a token", "distance towards the third", "distance along the first two",
    )  # fmt: skip
    measured = tables["planes"].to_pandas().pivot_table(index="y", columns="x", values="nll")
    assert [float(name.replace("−", "-")) for name in rows] == pytest.approx(list(measured.index), abs=5e-3)
    assert [float(name.replace("−", "-")) for name in columns] == pytest.approx(list(measured.columns), abs=5e-3)
    np.testing.assert_allclose(values, measured.to_numpy().ravel(), rtol=1e-3)


@pytest.mark.slow
def test_a_large_figure_is_what_is_shorter():
    fig, (ax,) = make_panels(1, 1, 2)
    for step in range(2000):
        ax.plot([0, 1], [step, step + 1], color="black")
    text = embed(fig, "lines", 'say "hi"')
    assert text.startswith('<img alt="say &#34;hi&#34;"')
    assert "data:image/webp;base64,UklGR" in text
    fig, (ax,) = make_panels(1, 1, 6)
    for low, high in np.sort(np.random.default_rng(0).random((60, 100, 2))).transpose(0, 2, 1):
        ax.fill_between(range(100), low, high, alpha=0.05)
    text = embed(fig, "bands", "")
    assert text.startswith("<svg")
    assert len(text) > SVG_LIMIT


def test_colours_stand_out_on_light_and_dark_paper():
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722])) + 0.05

    losses = ("sft", "rft", "dft", "rift", "grpo", "dpo")
    styles = run_styles({loss: loss for loss in losses}, "base")
    colours = {styles[loss].colour for loss in losses}
    assert len(colours) == len(losses)
    for colour in colours:
        for paper in ("#ffffff", "#14171c"):
            high, low = sorted((luminance(colour), luminance(paper)), reverse=True)
            assert high / low >= 2.9, (colour, paper)
