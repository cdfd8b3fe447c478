import numpy as np
from view_cases import axes_of, finished, row_of, sheet_of, titles, view_of

from raygeo.analyses.off_principal import report


def study():
    places = [{"scope": "layer", "layer": layer} for layer in range(3)] + [{"scope": "global"}]
    rows = [
        place | {"run": run, "module": "", "entries": 65_536, "update_sparsity": 0.66, "spectral_shift": 0.0027}
        | {"absolute_sparsity": 0.05, "gaussian_sparsity": 0.02}
        | {"left_max_degrees": 11.0, "left_mean_degrees": 5.6, "right_max_degrees": 9.0, "right_mean_degrees": 4.0}
        for run in ("sft", "rft")
        for place in places
    ]  # fmt: skip
    masks = [
        place | {"run": run, "module": "", "mask": mask, "overlap": share + 0.01 * (run == "rft")}
        | {"shuffled_overlap": share, "baseline": 0.3, "z": 40.0}
        for run in ("sft", "rft")
        for place in places
        for mask, share in {"principal": 0.22, "low-magnitude": 0.41, "principal only": 0.2, "neither": 0.37}.items()
    ]  # fmt: skip
    pair = {"run_a": "rft", "run_b": "sft", "scope": "global", "module": "", "both": 1234}
    pairs = [pair | {"jaccard": 0.125, "null_jaccard": 0.08}]
    return view_of(runs=finished("sft", "rft"), off_principal=rows, mask_overlaps=masks, changed_pairs=pairs)


def test_overlaps_are_drawn_relative_to_the_shuffled_delta():
    axes = axes_of(report.off_principal, study())
    assert titles(axes) == [
        "entries unchanged in bf16, %",
        "shift of the spectrum",
        "turn of the output subspace, degrees",
        "turn of the input subspace, degrees",
        "principal overlap, × shuffled",
        "low-magnitude overlap, × shuffled",
    ]
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), 66)
    _, rft, _ = axes[4].lines
    np.testing.assert_array_equal(rft.get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(rft.get_ydata(), 0.23 / 0.22)


def test_overlaps_stand_beside_chance():
    cells = row_of(sheet_of(report.before_and_after, study()), "rft")
    assert cells["unchanged"] == ("66 %", "of 65\u2009536")
    assert cells["still"] == ("5.0 %", "normal 2.0 %")
    assert cells["spectral shift"] == "0.0027"
    assert cells["output turn"] == ("11°", "mean 5.6°")
    assert cells["principal"] == ("23 %", "22 % shuffled, 30 % random (z 40)")


def test_both_sparsities_are_told_by_kind_of_module():
    row = {"run": "sft", "scope": "module type", "module": "q_proj", "entries": 1024}
    view = view_of(
        runs=finished("sft"),
        off_principal=[row | {"update_sparsity": 0.5, "absolute_sparsity": 0.25, "gaussian_sparsity": 0.1}],
    )
    assert sheet_of(report.sparsity_by_type, view).rows == [["sft", "q_proj", "50 %", "25 %", "10 %", "1\u2009024"]]


def test_entries_that_two_runs_changed_stand_beside_chance():
    assert sheet_of(report.changed_pairs, study()).rows == [["sft", "rft", "0.125", "0.080", "1\u2009234"]]
