import numpy as np
from view_cases import axes_of, finished, row_of, sheet_of, view_of

from raygeo.analyses.outputs import report

MOVED = {"sft": 0.17, "rft": 0.274, "dpo": 6.9}
SIZE = {"n": 200, "tokens": 6412}


def divergences(moved=MOVED):
    return [
        {"run_a": other, "run_b": run, "quantity": quantity, "value": value, "low": 0.8 * value, "high": 1.2 * value}
        | SIZE
        for run, kl in moved.items()
        for other in ("base", "sft")
        if run != other
        for quantity, value in (("kl_ab", 1.1 * kl), ("kl_ba", kl), ("agreement", 0.75))
    ]


def study():
    own = [
        {"run": run, "quantity": quantity, "value": value, "low": 0.9 * value, "high": 1.05 * value} | SIZE
        for run in ("base", *MOVED)
        for quantity, value in (("entropy", 0.2), ("max_probability", 0.93), ("top1_accuracy", 0.9), ("ece", 0.03))
    ]
    return view_of(runs=finished(*MOVED), outputs=own, divergences=divergences())


def test_divergences_from_the_base_stand_each_way_with_their_intervals():
    axes = axes_of(report.divergence, study())
    for ax, factor in zip(axes, (1, 1.1), strict=True):
        for y, kl in enumerate(MOVED.values()):
            bar, point = (line for line in ax.lines if set(line.get_ydata()) == {y})
            np.testing.assert_allclose(bar.get_xdata(), [0.8 * factor * kl, 1.2 * factor * kl])
            np.testing.assert_allclose(point.get_xdata(), factor * kl)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(MOVED)


def test_predictions_are_compared_with_the_base_and_the_reference():
    sheet = sheet_of(report.predictions, study())
    assert [cells[0] for cells in sheet.rows] == ["base", *MOVED]
    rft, base = row_of(sheet, "rft"), row_of(sheet, "base")
    assert rft["KL(run ‖ base)"] == rft["KL(run ‖ ref.)"] == ("0.274", "[0.219, 0.329]")
    assert rft["KL(base ‖ run)"] == ("0.301", "[0.241, 0.362]")
    assert rft["agrees with ref."] == ("75.0 %", "[60.0, 90.0]")
    assert base["KL(run ‖ base)"] == row_of(sheet, "sft")["KL(run ‖ ref.)"] == "–"
    assert base["entropy"] == ("0.200", "[0.180, 0.210]")
    assert base["calibration error"] == ("3.0 %", "[2.7, 3.1]")


def test_caveats_name_the_texts_and_runs_that_moved_unalike():
    view = study()
    assert "over 6\u2009412 tokens of 200 correct held-out solutions" in report.teacher_forced(view)[0]
    assert report.unmatched(view) == [
        "The runs are not matched in how far their predictions moved: KL(run ‖ base) of dpo is 41 times that of sft."
    ]
    assert report.unmatched(view_of(divergences=divergences({"sft": 0.2, "rft": 0.274}))) == []
