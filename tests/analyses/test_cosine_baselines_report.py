from view_cases import axes_of, finished, row_of, sheet_of, titles, view_of

from raygeo.analyses.cosine_baselines import report

PAIR = {"seeds": "same", "cosine": 0.683, "z": 525.38, "distance": 2.734, "matched_distance": 2.628} | {
    "centred_cosine": 0.383, "centred_null": -0.2, "matched_centred_cosine": 0.283, "matched_centred_null": -0.15,
}  # fmt: skip
FLOOR = {"configuration_a": "sft", "seeds": "order", "n": 1}
FLOORS = [
    FLOOR | {"configuration_b": "sft", "low": 0.871, "mean": 0.871, "high": 0.871},
    FLOOR | {"configuration_b": "rft", "low": 0.669, "mean": 0.669, "high": 0.669, "disattenuated": 1.02},
]
SPANS = [
    {"configuration": "sft", "run": run, "among": run != "rft", "n": 2, "null_fraction": 0.99999}
    | {"orthogonal_fraction": 0.491}
    for run in ("sft", "sft-s1", "rft")
]
TEST = {"runs": 7, "losses": 6, "within_n": 1, "within_mean": 0.871, "between_n": 5, "between_mean": 0.366}
TESTS = [
    {"like": "", "d_prime": 1.61, "labelings": 6, "reason": "6 different labelings cannot give a p-value"} | TEST,
    {"like": "sft", "d_prime": 1.61, "labelings": 720, "p": 0.0021, "reason": ""} | TEST,
    {"like": "dpo", "labelings": 10**9, "draws": 9999, "p": 1e-4, "reason": ""} | TEST,
]


def study(**rows):
    return view_of(runs=finished("sft", "rft", "sft-s1", "dpo"), noise_floors=FLOORS, span_residuals=SPANS, **rows)


def test_cosines_stand_beside_their_baselines():
    pairs = [PAIR | {"run_a": "rft", "run_b": "dpo", "cosine": 0.3}, PAIR | {"run_a": "rft", "run_b": "sft"}]
    sheet = sheet_of(report.baselines, study(cosine_baselines=pairs))
    assert sheet.rows[0][:2] == ["sft", "rft"]
    assert row_of(sheet, "sft", "rft") == {
        "a": "sft",
        "b": "rft",
        "seeds that differ": "none",
        "cosine": "0.683",
        "z": "525.4",
        "noise floor": ("0.87 to 0.87", "1 pair: data order"),
        "disattenuated": "–",
        "centred": ("0.38 / 0.28", "−0.20 / −0.15"),
        "distance": ("2.73", "2.63"),
    }
    assert row_of(sheet, "rft", "dpo")["noise floor"] == "–"


def test_permutation_tests_have_their_p_or_the_reason_why_not():
    first, second, third = sheet_of(report.permutation_tests, study(permutation_tests=TESTS)).rows
    assert first == [
        "all", "7", ("0.871", "1 pair"), ("0.366", "5 pairs"), "1.61", "–",
        "6 different labelings cannot give a p-value",
    ]  # fmt: skip
    assert second[0] == "those of sft"
    assert second[-2:] == ["0.002", "all 720 labelings"]
    assert third[-3:] == ["–", "< 0.001", "9\u2009999 draws of 1\u2009000\u2009000\u2009000 labelings"]


def test_floors_and_spans_name_configurations_by_a_run():
    own, between = sheet_of(report.noise_floors, study()).rows
    assert own == ["sft", "itself", "data order", "1", ("0.871", "[0.871, 0.871]"), "–"]
    assert between[1:] == ["rft", "data order", "1", ("0.669", "[0.669, 0.669]"), "1.020"]
    sheet = sheet_of(report.span_residuals, study())
    assert row_of(sheet, "sft-s1")["orthogonal fraction"] == "0.491"
    assert row_of(sheet, "sft-s1")["the run is"] == "one of them, left out"
    assert row_of(sheet, "rft")["the run is"] == ""


def test_what_the_test_asks_is_said_where_there_is_one():
    tested = [TESTS[0] | {"reason": "", "p": 0.01}]
    [said] = [s for s in report.judged_by(view_of(permutation_tests=tested)) if "permutation" in s]
    assert said.startswith("The permutation test asks whether the loss matters at all (6 losses, 7 runs)")


def maps(*shares):
    places = {"base": (0.0, 0.0), "sft": (2.94, 0.0), "rft": (2.5, 2.7)}
    return {
        "mds": [
            {"scaling": scaling, "run": run, "x": x / size, "y": y / size}
            for scaling, size in (("raw", 1), ("matched", 4))
            for run, (x, y) in places.items()
        ],
        "mds_axes": [
            {"scaling": scaling, "axis": i + 1, "share": share, "stress": 0.3 / (1 + i)}
            for scaling in ("raw", "matched")
            for i, share in enumerate(shares)
        ],
    }


def test_the_map_has_every_run_at_its_place_and_says_what_it_leaves_out():
    raw, matched = axes_of(report.run_map, study(**maps(0.45, 0.26, 0.29)))
    assert titles([raw, matched]) == [
        "deltas as they are: 71.0 % of the variance, stress 0.15",
        "at unit length: 71.0 % of the variance, stress 0.15",
    ]
    points = [(x.get_xdata()[0], x.get_ydata()[0]) for x in raw.lines if len(x.get_xdata()) == 1]
    assert points == [(0.0, 0.0), (2.94, 0.0), (2.5, 2.7)]
    assert len(matched.lines) == len(raw.lines) + 1  # the circle


def test_a_map_that_holds_all_is_not_called_flat():
    assert "holds 71.0 % of the variance" in report.flat_map(study(**maps(0.45, 0.26, 0.29)))[0]
    assert report.flat_map(study(**maps(0.9, 0.1))) == []
