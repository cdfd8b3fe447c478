import numpy as np
from view_cases import axes_of, finished, row_of, sheet_of, titles, view_of

from raygeo.analyses.cka import report

BESIDE_BASE = [1.0, 0.963, 0.852]


def study(*more):
    pair = {"run_a": "base", "run_b": "rft", "n": 200}
    rows = [pair | {"layer": i, "treatment": "plain", "cka": cka} for i, cka in enumerate(BESIDE_BASE)]
    rows += [row | {"treatment": "without_1_pc", "cka": 2 * row["cka"] - 1} for row in rows]
    rows += [
        {"run_a": "rft", "run_b": "sft", "layer": layer, "treatment": "plain", "cka": cka, "n": 200}
        for layer, cka in ((2, 0.968), (0, 1.0), (1, 0.9))
    ]
    return view_of(runs=finished("sft", "rft"), cka=[*rows, *more])


def test_cka_is_drawn_without_any_treatment():
    axes = axes_of(report.cka, study())
    assert titles(axes) == ["CKA with base", "CKA with sft"]
    [beside_base], [beside_reference] = (ax.lines for ax in axes)
    np.testing.assert_allclose(beside_base.get_ydata(), BESIDE_BASE)
    np.testing.assert_allclose(beside_reference.get_ydata(), [1.0, 0.9, 0.968])


def test_treatments_stand_side_by_side():
    assert row_of(sheet_of(report.treatments, study()), "rft") == {
        "run": "rft",
        "plain": ("0.852", "least 0.852"),
        "no first component": ("0.704", "least 0.704"),
    }


def test_cka_beside_the_reference_run_is_plain():
    treated = {"run_a": "sft", "run_b": "rft", "layer": 2, "treatment": "without_1_pc", "cka": 0.1}
    for view in (study(), study(treated)):
        [(title, _, sheet)] = report.with_reference.sheets(view)
        assert title == "Representations beside sft"
        assert row_of(sheet, "rft") == {"run": "rft", "CKA, last layer": "0.968", "least over layers": "0.900"}


def test_caveats_name_how_many_states_were_compared():
    [said] = report.fixed_texts(study())
    assert said.startswith("CKA compares 200 hidden states of fixed texts")
    assert said.endswith("the table without them shows what they hide.")


def test_plain_cka_alone_has_no_table_of_treatments():
    plain = {"run_a": "base", "run_b": "rft", "n": 200, "layer": 0, "treatment": "plain", "cka": 0.9}
    view = view_of(runs=finished("sft", "rft"), cka=[plain])
    assert report.treatments.sheets(view) == []
    assert report.fixed_texts(view)[0].endswith("with the most variance.")
