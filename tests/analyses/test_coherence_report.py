import numpy as np
from view_cases import axes_of, finished, row_of, sheet_of, view_of

from raygeo.analyses.coherence import report

ENDS = {"": 0.0, "_low": -0.02, "_high": 0.02}
RUNS = ("sft", "rft", "dpo")


def study(pairwise_error=None, cosine_error=None):
    rows = [
        {"run": run, "at": at, "n": 32, "gradient_norm": 1.3, "pairwise_error": pairwise_error}
        | {f"pairwise{end}": pair + d for end, d in ENDS.items()}
        | {f"coherence{end}": 1 + 31 * (pair + d) for end, d in ENDS.items()}
        for run in RUNS
        for at, pair in (("base", 0.12), ("run", 0.03))
    ]
    cosines = [
        {"run_a": a, "run_b": b, "n": 32, "expected": expected, "cosine_error": cosine_error}
        | {f"cosine{end}": x + d for end, d in ENDS.items()}
        for a, b, x, expected in (("rft", "dpo", 0.3, None), ("rft", "sft", 0.8, 0.9), ("sft", "dpo", 0.5, 0.6))
    ]
    return view_of(runs=finished(*RUNS), coherence=rows, gradient_cosines=cosines)


def test_coherence_is_a_stroke_at_the_base_and_a_marker_at_the_run():
    (ax,) = axes_of(report.coherence, study())
    stroke, marker = (
        [line for line in ax.lines if list(line.get_ydata()) == [place] and line.get_marker() != "None"]
        for place in (-0.16, 0.16)
    )
    assert [line.get_marker() for line in (stroke[0], marker[0])] == ["|", "o"]
    assert (stroke[0].get_xdata()[0], marker[0].get_xdata()[0]) == (0.12, 0.03)


def test_gradient_cosines_are_a_symmetric_matrix_of_losses():
    (ax,) = axes_of(report.cosine_matrix, study())
    assert [label.get_text() for label in ax.get_yticklabels()] == list(RUNS)
    cells = ax.collections[0].get_array().reshape(3, 3)
    np.testing.assert_allclose(cells, [[1, 0.8, 0.5], [0.8, 1, 0.3], [0.5, 0.3, 1]])


def test_coherence_stands_at_the_base_and_at_the_run():
    sft = row_of(sheet_of(report.estimates, study()), "sft")
    assert sft["m"] == "32"
    assert sft["m-coherence at the base"] == ("4.72", "[4.10, 5.34]")
    assert sft["a pair at the run"] == ("0.030", "[0.010, 0.050]")
    assert sft["gradient at the run"] == "1.30"


def test_cosines_without_noise_are_missing_where_prompts_are_too_few():
    assert sheet_of(report.cosine_pairs, study()).rows == [
        ["sft", "rft", ("0.800", "[0.780, 0.820]"), "0.900", "32"],
        ["sft", "dpo", ("0.500", "[0.480, 0.520]"), "0.600", "32"],
        ["rft", "dpo", ("0.300", "[0.280, 0.320]"), "–", "32"],
    ]


def test_the_caveat_names_how_many_prompts_there_were():
    assert report.few_prompts(study())[0].startswith("Coherence is over 32 training prompts with one example each")
    one = view_of(coherence=[{"run": "sft", "at": "base", "n": 1}])
    assert report.few_prompts(one)[0].startswith("Coherence is over 1 training prompt with one")


def test_errors_of_projections_stand_beside_the_intervals_and_are_told():
    projected = study(0.0012, 0.004)
    assert row_of(sheet_of(report.estimates, projected), "sft")["a pair at the run"] == (
        "0.030", "[0.010, 0.050] ± 0.00120 projected"
    )  # fmt: skip
    assert sheet_of(report.cosine_pairs, projected).rows[0][2] == ("0.800", "[0.780, 0.820] ± 0.00400 projected")
    [said] = report.projections(projected)
    assert "a standard error of at most 0.00120, cosines between losses one of at most 0.00400" in said
    assert report.projections(study()) == []
