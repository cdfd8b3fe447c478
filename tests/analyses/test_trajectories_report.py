import numpy as np
import pytest
from view_cases import axes_of, finished, row_of, sheet_of, titles, view_of

from raygeo.analyses.trajectories import report

STEPS = (1, 4, 26, 150)


def study():
    """Two runs whose norms grow by both laws at once, as no real one does."""
    steps = [
        {"run": run, "step": t, "norm": 0.1 * t**0.6, "cosine_final": t / 150, "straightness": 0.91}
        | {"cosine_previous": 1 - t / 250, "cosine_reference": None if run == "sft" else 0.5}
        for run in ("sft", "dpo")
        for t in STEPS
    ]
    fits = [
        {"run": run, "law": law, "n": 4, "a": a, "b": b, "rss": rss, "aic": aic}
        for run in ("sft", "dpo")
        for law, a, b, rss, aic in (("log", -0.37, 0.74, 0.04, -12.5), ("power", 0.1, 0.6, 1e-3, -40.0))
    ]
    return view_of(runs=finished("sft", "dpo"), trajectories=steps, trajectory_fits=fits)


def test_norms_stand_by_loss_over_log_steps_with_the_law_that_fits_better():
    axes = axes_of(report.trajectories, study())
    assert titles(axes) == [
        "sft: norm of the delta",
        "dpo: norm of the delta",
        "cosine to the final delta",
        "cosine to sft",
    ]
    assert {ax.get_xscale() for ax in axes} == {"log"}
    points, power = axes[1].lines
    t = power.get_xdata()
    np.testing.assert_array_equal(points.get_xdata(), STEPS)
    np.testing.assert_allclose(points.get_ydata(), 0.1 * np.array(STEPS) ** 0.6)
    np.testing.assert_allclose(power.get_ydata(), 0.1 * t**0.6)
    assert (t[0], t[-1]) == pytest.approx((1, 150))
    assert len([line for line in axes[3].lines if len(line.get_xdata()) == len(STEPS)]) == 1


def test_laws_stand_with_their_errors_and_how_straight_the_way_was():
    assert row_of(sheet_of(report.laws, study()), "dpo") == {
        "run": "dpo",
        "points": "4",
        "a + b log t": ("−0.370 + 0.740 log t", "RSS 0.040"),
        "c t^q": ("0.100 t^0.600", "RSS 0.0010"),
        "AIC, log − power": "27.5",
        "‖Δ‖ / path": "0.91",
        "sharpest turn, cosine": "0.40",
    }


@pytest.mark.parametrize("fits", [[], [{"run": "b", "law": law, "n": 2} for law in ("log", "power")]])
def test_too_few_points_have_no_law_and_no_reference_no_panel(fits):
    steps = [{"run": "b", "step": step, "norm": 0.1 * step, "cosine_final": 0.5} for step in (1, 4)]
    view = view_of(trajectories=steps, trajectory_fits=fits)
    assert sheet_of(report.laws, view).rows == [["b", "2", *["–"] * 5]]
    norm, final = axes_of(report.trajectories, view)
    assert len(norm.lines) == 1
    assert titles([final]) == ["cosine to the final delta"]
