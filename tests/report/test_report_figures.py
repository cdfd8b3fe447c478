import numpy as np
import pyarrow as pa
import pytest
from matplotlib.colors import to_rgb
from report_study import COSINES, DIVERGED, KEPT, REFERENCE, RUNS

from raygeo.report.figures import FIGURES, draw_figures
from raygeo.report.style import _COLOURS, run_styles
from raygeo.report.view import View
from raygeo.tables import to_arrow

SOURCE = {
    "accuracy": "accuracy",
    "nll": "curves",
    "objective": "curves",
    "cosine": "similarity",
    "norms": "deltas",
    "trajectories": "trajectories",
    "angles": "subspaces",
    "map": "maps",
    "off-principal": "off_principal",
    "paths": "paths",
    "base-paths": "paths",
    "matched-paths": "matched_paths",
    "curves": "curve_paths",
    "layerwise": "layerwise",
    "wise": "wise",
    "planes": "planes",
    "spectra": "curvature",
    "eigenvalues": "curvature",
    "directional": "curvature",
    "block-curvature": "curvature",
    "expansions": "expansions",
    "sharpness": "sharpness",
    "cka": "cka",
    "layer-cka": "layer_cka",
    "drift": "drift",
    "divergence": "divergences",
    "coherence": "coherence",
    "gradient-cosines": "gradient_cosines",
}


def lines(ax, colour, minimum=2):
    """Data of the lines in ``ax`` of one colour with at least ``minimum`` points."""
    return [x for x in ax.lines if to_rgb(x.get_color()) == to_rgb(colour) and len(x.get_xdata()) >= minimum]


def test_a_full_study_draws_every_figure_in_reading_order(figures):
    assert list(figures) == list(FIGURES) == list(SOURCE)


def test_an_empty_study_draws_nothing():
    assert draw_figures({}, REFERENCE) == {}


@pytest.mark.parametrize("name", SOURCE)
def test_a_figure_without_its_table_is_skipped(tables, name):
    without = {key: table for key, table in tables.items() if key != SOURCE[name]}
    assert FIGURES[name].draw(View(without, REFERENCE)) is None


def test_cosines_stand_in_clustered_order_with_their_values(figures):
    (ax,) = figures["cosine"].axes
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(shown) == sorted(RUNS)
    assert abs(shown.index(REFERENCE) - shown.index("sft-lr5e-05-s1")) == 1
    names = list(RUNS)
    cells = ax.collections[0].get_array().reshape(8, 8)
    for i, a in enumerate(shown):
        for j, b in enumerate(shown):
            assert cells[i, j] == pytest.approx(COSINES[names.index(a), names.index(b)], abs=1e-12)
    norm = ax.collections[0].norm
    assert (norm.vmin, norm.vmax) == (-1, 1)


def test_a_missing_cosine_leaves_its_cell_empty(tables):
    rows = [
        row for row in tables["similarity"].to_pylist() if {row["run_a"], row["run_b"]} != {REFERENCE, "rft-lr5e-05-s0"}
    ]
    (ax,) = draw_figures(tables | {"similarity": to_arrow("similarity", rows)}, REFERENCE)["cosine"].axes
    assert ax.collections[0].get_array().mask.sum() == 2
    assert len(ax.texts) == 62


def test_paths_start_at_the_reference_whichever_way_they_were_measured(tables):
    path = [0.5, 0.4, 0.9]
    there = [
        {"run_a": REFERENCE, "run_b": "b", "probe": "p", "metric": "nll", "alpha": a, "loss": loss}
        for a, loss in zip([0, 0.25, 1], path, strict=True)
    ]
    back = [row | {"run_a": "b", "run_b": REFERENCE, "alpha": 1 - row["alpha"]} for row in there]
    for rows in (there, back):
        fig = draw_figures({"runs": tables["runs"], "paths": to_arrow("paths", rows)}, REFERENCE)["paths"]
        (line,) = [line for line in fig.axes[0].lines if len(line.get_xdata()) == 3]
        np.testing.assert_allclose(line.get_xdata(), [0, 0.25, 1])
        np.testing.assert_allclose(line.get_ydata(), path)


def test_paths_have_a_panel_for_each_probe_and_accuracy(figures):
    titles = [ax.get_title(loc="left") for ax in figures["paths"].axes]
    assert titles == ["solutions: NLL, nats a token", "answers: NLL, nats a token", "problems: accuracy, %"]
    partners = [name for name in RUNS if name != REFERENCE]
    assert [text.get_text() for text in figures["paths"].legends[0].get_texts()] == partners
    assert [text.get_text() for text in figures["base-paths"].legends[0].get_texts()] == list(RUNS)


def test_angles_are_medians_of_extremes_beside_the_null():
    rows = []
    for module, angles in {"q": (10.0, 40.0), "k": (20.0, 60.0), "v": (24.0, 89.0)}.items():
        for index, angle in enumerate(angles):
            pair = {"run_a": "b", "run_b": REFERENCE, "module": module, "layer": 4, "side": "left", "k": 2}
            rows.append(pair | {"index": index, "angle_degrees": angle, "null_degrees": 70.0 + 15 * index})
    smallest, largest = draw_figures({"subspaces": to_arrow("subspaces", rows)}, REFERENCE)["angles"].axes
    assert [line.get_ydata().item() for line in smallest.lines] == [20.0, 70.0]
    assert [line.get_ydata().item() for line in largest.lines] == [60.0, 85.0]


def test_norms_are_root_sums_of_squares_of_a_layer():
    rows = [
        {"run": "b", "module": module, "layer": 0, "scope": "module", "norm": norm, "base_norm": base}
        for module, norm, base in (("q", 3.0, 6.0), ("k", 4.0, 8.0))
    ] + [{"run": "b", "module": "", "layer": 0, "scope": "layer", "norm": 5.0, "base_norm": 10.0}]
    absolute, relative = draw_figures({"deltas": to_arrow("deltas", rows)}, REFERENCE)["norms"].axes
    assert absolute.lines[0].get_ydata().item() == pytest.approx(5.0)
    assert relative.lines[0].get_ydata().item() == pytest.approx(50.0)


def test_norms_stand_by_loss_over_log_steps_with_both_laws(tables, figures):
    axes = figures["trajectories"].axes
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles[:6] == [f"{loss}: norm of the delta" for loss in ("sft", "rft", "dft", "rift", "grpo", "dpo")]
    assert titles[6:] == ["cosine to the final delta", f"cosine to {REFERENCE}"]
    assert {ax.get_xscale() for ax in axes} == {"log"}
    (points, log, power) = axes[1].lines
    norm, t = RUNS["rft-lr5e-05-s0"][3], log.get_xdata()
    np.testing.assert_array_equal(points.get_xdata(), KEPT)
    np.testing.assert_allclose(points.get_ydata(), norm * (np.array(KEPT) / 150) ** 0.6)
    np.testing.assert_allclose(log.get_ydata(), norm * (-0.1 + 0.2 * np.log(t)))
    np.testing.assert_allclose(power.get_ydata(), norm * (t / 150) ** 0.6)
    assert (t[0], t[-1]) == pytest.approx((1, 150))
    assert len(axes[0].lines) == 2 * 3
    assert len([line for line in axes[7].lines if len(line.get_xdata()) == len(KEPT)]) == len(RUNS) - 1
    labels = [text.get_text() for text in figures["trajectories"].legends[0].get_texts()]
    assert labels == [*RUNS, "a + b log t", "c t^q"]


def test_trajectories_without_laws_or_reference_show_what_there_is():
    rows = [{"run": "b", "step": step, "norm": 0.1 * step, "cosine_final": 0.5} for step in (1, 4)]
    fits = [{"run": "b", "law": law, "n": 2} for law in ("log", "power")]
    tables = {"trajectories": to_arrow("trajectories", rows), "trajectory_fits": to_arrow("trajectory_fits", fits)}
    norm, final = draw_figures(tables, REFERENCE)["trajectories"].axes
    assert len(norm.lines) == 1
    assert final.get_title(loc="left") == "cosine to the final delta"


def test_the_map_has_every_run_at_its_place_and_says_what_it_leaves_out(tables, figures):
    raw, matched = figures["map"].axes
    assert raw.get_title(loc="left") == "deltas as they are: 71.0 % of the variance, stress 0.15"
    assert matched.get_title(loc="left") == "at unit length: 71.0 % of the variance, stress 0.15"
    places = {(r["scaling"], r["run"]): (r["x"], r["y"]) for r in tables["maps"].to_pylist()}
    for ax, scaling in ((raw, "raw"), (matched, "matched")):
        points = [(x.get_xdata()[0], x.get_ydata()[0]) for x in ax.lines if len(x.get_xdata()) == 1]
        assert points == [places[scaling, name] for name in ("base", *RUNS)]
    assert len(matched.lines) == len(raw.lines) + 1
    assert [text.get_text() for text in figures["map"].legends[0].get_texts()] == ["base", *RUNS]


def test_overlaps_are_drawn_relative_to_the_shuffled_delta(figures):
    axes = figures["off-principal"].axes
    assert [ax.get_title(loc="left") for ax in axes] == [
        "entries unchanged in bf16, %",
        "shift of the spectrum",
        "turn of the output subspace, degrees",
        "turn of the input subspace, degrees",
        "principal overlap, × shuffled",
        "low-magnitude overlap, × shuffled",
    ]
    rft = axes[4].lines[1]
    np.testing.assert_array_equal(rft.get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(rft.get_ydata(), 0.23 / 0.22)


def test_accuracy_shows_the_base_intervals_and_numbers(tables, figures):
    (ax,) = figures["accuracy"].axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base", *RUNS]
    assert [text.get_text() for text in ax.texts][:2] == ["42.0 %", "83.3 %"]
    base = tables["accuracy"].to_pylist()[0]
    bar = next(line for line in ax.lines if len(line.get_xdata()) == 2 and list(line.get_ydata()) == [0, 0])
    np.testing.assert_allclose(bar.get_xdata(), [100 * base["low"], 100 * base["high"]])


def test_a_diverged_run_is_drawn_but_does_not_set_the_scale(figures):
    (ax,) = figures["nll"].axes
    assert ax.get_ylim()[1] < 0.5
    assert DIVERGED in [text.get_text() for text in figures["nll"].legends[0].get_texts()]


def test_a_loss_keeps_its_colour_in_every_figure(tables, figures):
    colour = View(tables, REFERENCE).styles["rft-lr5e-05-s0"].colour
    for name in ("nll", "norms", "angles", "paths", "base-paths", "cka", "drift"):
        assert lines(figures[name].axes[0], colour), name


def test_variants_of_a_loss_differ_in_line_and_marker():
    styles = run_styles({"a": "dpo", "b": "dpo", "c": "sft"}, "base")
    assert styles["a"].colour == styles["b"].colour != styles["c"].colour
    assert styles["a"].filled
    assert not styles["b"].filled
    assert (styles["a"].dashes, styles["a"].marker) != (styles["b"].dashes, styles["b"].marker)


def test_an_unknown_loss_takes_a_free_colour():
    styles = run_styles({"a": "sft", "b": "mine", "c": "yours"}, "base")
    assert len({style.colour for style in styles.values()}) == 4


def test_colours_stand_out_on_light_and_dark_paper():
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722])) + 0.05

    for colour in _COLOURS.values():
        for paper in ("#ffffff", "#14171c"):
            high, low = sorted((luminance(colour), luminance(paper)), reverse=True)
            assert high / low >= 2.9, (colour, paper)


def test_spectra_give_every_run_a_panel_with_the_base_behind(figures):
    axes = figures["spectra"].axes
    assert [ax.get_title(loc="left") for ax in axes] == list(RUNS)
    assert all(sum(len(line.get_xdata()) > 2 for line in ax.lines) == 2 for ax in axes)


def test_rows_of_another_operator_are_not_mixed_in(tables):
    doubled = [row | {"operator": "ggn", "value": 1e9} for row in tables["curvature"].to_pylist() if row["operator"]]
    both = pa.concat_tables([tables["curvature"], to_arrow("curvature", doubled)])
    (ax,) = draw_figures({"runs": tables["runs"], "curvature": both}, REFERENCE)["eigenvalues"].axes
    assert max(max(line.get_xdata()) for line in ax.lines) < 100
    assert "hessian" in ax.get_title(loc="left")


def test_cka_is_drawn_without_any_treatment(tables, figures):
    rows = tables["cka"].to_pylist()
    style = View(tables, REFERENCE).styles["grpo-lr5e-05-s0"]
    for ax, other in zip(figures["cka"].axes, ("base", REFERENCE), strict=True):
        plain = [
            row["cka"]
            for row in rows
            if {row["run_a"], row["run_b"]} == {other, "grpo-lr5e-05-s0"} and row["treatment"] == "plain"
        ]
        (line,) = lines(ax, style.colour)
        np.testing.assert_allclose(line.get_ydata(), plain)


def test_layers_of_the_base_are_rows_and_the_base_comes_first():
    rows = [
        {"run_a": "base", "run_b": name, "layer_a": a, "layer_b": b, "cka": value}
        for name in ("b", "base")
        for a, b, value in ((0, 0, 1.0), (0, 4, 0.2), (4, 0, 0.3), (4, 4, 0.9))
    ] + [{"run_a": REFERENCE, "run_b": "b", "layer_a": 0, "layer_b": 0, "cka": 0.5}]
    fig = draw_figures({"cka": to_arrow("cka", [{"run_a": "base", "run_b": "b"}]),
                        "layer_cka": to_arrow("layer_cka", rows)}, REFERENCE)["layer-cka"]  # fmt: skip
    first, second, *_ = fig.axes
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["base", "b"]
    np.testing.assert_allclose(second.collections[0].get_array().reshape(2, 2), [[1.0, 0.2], [0.3, 0.9]])
    assert [label.get_text() for label in second.get_yticklabels()] == ["0", "4"]


def test_divergences_from_the_base_stand_each_way_with_their_intervals(figures, tables):
    forward, backward = figures["divergence"].axes
    assert [label.get_text() for label in forward.get_yticklabels()] == list(RUNS)
    values = {(r["run_b"], r["quantity"]): r for r in tables["divergences"].to_pylist() if r["run_a"] == "base"}
    for ax, quantity in ((forward, "kl_ba"), (backward, "kl_ab")):
        for y, name in enumerate(RUNS):
            row = values[name, quantity]
            bar, point = (line for line in ax.lines if set(line.get_ydata()) == {y})
            np.testing.assert_allclose(bar.get_xdata(), [row["low"], row["high"]])
            np.testing.assert_allclose(point.get_xdata(), [row["value"]])


def test_coherence_is_a_stroke_at_the_base_and_a_marker_at_the_run(figures):
    (ax,) = figures["coherence"].axes
    stroke, marker = (
        [line for line in ax.lines if list(line.get_ydata()) == [place] and line.get_marker() != "None"]
        for place in (-0.16, 0.16)
    )
    assert [line.get_marker() for line in (stroke[0], marker[0])] == ["|", "o"]
    assert (stroke[0].get_xdata()[0], marker[0].get_xdata()[0]) == (0.12, 0.03)


def test_gradient_cosines_have_a_row_a_loss(figures):
    (ax,) = figures["gradient-cosines"].axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        name for name in RUNS if name not in ("dpo-lr0.0005-s0", "sft-lr5e-05-s1")
    ]
    cells = ax.collections[0].get_array().reshape(6, 6)
    np.testing.assert_allclose(np.diagonal(cells), 1)
    np.testing.assert_allclose(cells, cells.T)


def test_blocks_have_their_own_eigenvalues_layer_by_layer(tables, figures):
    tops, means = figures["block-curvature"].axes
    rows = [row for row in tables["curvature"].to_pylist() if row["run"] == "base" and row["space"].startswith("block")]
    assert [list(line.get_xdata()) for line in tops.lines] == [[0, 1, 2]] * (1 + len(RUNS))
    np.testing.assert_allclose(tops.lines[0].get_ydata(), [r["value"] for r in rows if r["quantity"] == "eigenvalue"])
    traces = [r["value"] / r["parameters"] for r in rows if r["quantity"] == "trace"]
    np.testing.assert_allclose(means.lines[0].get_ydata(), traces)


def test_predicted_paths_stand_beside_measured_ones(tables, figures):
    axes = figures["expansions"].axes
    assert [ax.get_title(loc="left") for ax in axes] == list(RUNS)
    measured, from_base, from_run = (line.get_ydata() for line in axes[0].lines)
    alphas = axes[0].lines[0].get_xdata()
    np.testing.assert_allclose(from_base - measured, 0.02 * alphas**3, atol=1e-12)
    np.testing.assert_allclose(from_run - measured, 0.02 * (1 - alphas) ** 3, atol=1e-12)


def test_sharpness_has_a_panel_for_each_measure_with_errors(figures):
    axes = figures["sharpness"].axes
    assert [ax.get_title(loc="left") for ax in axes][:2] == ["SAM: one step", "worst of several steps"]
    assert [len(ax.containers) for ax in axes] == [0, 0, 0, 9, 9]
