"""What the page and the tracker show of cut ranks, single heads and critical sharpness."""

import json

import numpy as np
import pytest
from view_cases import axes_of, finished, row_of, sheet_of, titles, view_of

from raygeo.analyses.critical_sharpness import report as critical
from raygeo.analyses.heads import report as heads
from raygeo.analyses.rank_truncation import report as ranks

RUNS = finished("sft", "dpo")


def cut(run, kind, rank, **columns):
    return {"run": run, "kind": kind, "rank": rank, "n": 48, "tokens": 900, **columns}


RANKS = [
    cut("sft", "base", 0, nll=0.2),
    cut("sft", "truncated", 1, energy=0.5, kept=0.8, accuracy=0.5, problems=40),
    cut("sft", "random", 1, energy=0.1, kept=0.1),
    cut("sft", "scaled", 1, energy=0.5, kept=0.4),
    cut("sft", "truncated", 4, energy=0.9, kept=0.995, accuracy=0.75, problems=40),
    cut("sft", "whole", 16, energy=1.0, accuracy=0.75, problems=40),
    cut("dpo", "truncated", 1, energy=0.7),
    cut("dpo", "whole", 16, energy=1.0),
]
LEAST = [
    {"run": "sft", "keep": 0.99, "gain": 0.1, "gain_low": 0.08, "gain_high": 0.12, "full_rank": 16}
    | {"least_rank": 4, "least_low": 1, "least_high": 16},
    {"run": "dpo", "keep": 0.99, "gain": -0.3, "gain_low": -0.4, "gain_high": -0.2, "full_rank": 16},
]
CUT = view_of(runs=RUNS, rank_truncation=RANKS, least_ranks=LEAST)


def test_ranks_end_at_the_run_and_stand_beside_their_nulls():
    kept, energy, accuracy = axes_of(ranks.truncation, CUT)
    [whole, *nulls] = kept.lines
    np.testing.assert_allclose([whole.get_xdata(), whole.get_ydata()], [[1, 4, 16], [80, 99.5, 100]])
    assert [line.get_ydata().tolist() for line in nulls] == [[10], [40]]
    assert len(energy.lines) == 3, "two runs, and random directions"
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 75, 75])
    row = row_of(sheet_of(ranks.least, CUT), "sft")
    assert row["least rank"] == ("4 of 16", "[1, 16]")
    assert (row["its gain"], row["random directions"], row["whole, scaled"]) == ("80 %", "10 %", "40 %")
    assert row_of(sheet_of(ranks.least, CUT), "dpo")["least rank"] == "–"


def test_what_ranks_do_not_show_is_said_and_tracked():
    told = " ".join(ranks.limits(CUT))
    assert "not told from 0 for dpo" in told
    assert "dpo made held-out solutions less likely" in told
    assert "over 40 problems, so one problem is 2.5 points" in told
    found = {(run, name): value for run, name, value in ranks.metrics(CUT)}
    assert found["sft", "rank_truncation/least_rank"] == 4
    assert found["dpo", "rank_truncation/least_rank"] is None
    assert found["sft", "rank_truncation/truncated/1"] == 0.8
    assert found["sft", "rank_truncation/random/1"] == 0.1
    assert found["sft", "rank_truncation/energy/4"] == 0.9


def head(index, norm, dealt, kind="query"):
    where = {"run": "sft", "module": "model.layers.1.self_attn", "layer": 1, "kind": kind, "head": index}
    return where | {"norm": norm, "random_norm": dealt, "share": norm**2 / 100}


def effect(chosen, value, index=None):
    where = {"run": "sft", "module": "model.layers.1.self_attn", "kind": "query", "head": index, "chosen": chosen}
    both = {
        f"{what}{end}": value + x for what in ("removed", "added") for end, x in (("", 0), ("_low", -1), ("_high", 1))
    }
    return where | both | {"norm": 2.0, "n": 48, "gain": 5.0}


HEADS = view_of(
    runs=RUNS,
    heads=[head(0, 1.0, 2.0), head(1, 3.0, 2.0), head(0, 2.0, 2.0, "key-value")],
    head_effects=[effect("largest", 4.0, 1), effect("random", 2.0, 0), effect("control", 0.5)],
)


def test_heads_are_sorted_beside_those_dealt_at_random():
    query, key_value = axes_of(heads.heads, HEADS)
    assert titles([query, key_value]) == ["query heads", "key-value heads"]
    np.testing.assert_allclose(query.lines[0].get_ydata(), np.array([3, 1]) / 5**0.5)
    np.testing.assert_allclose(query.lines[1].get_ydata(), [1, 1])
    removed, added = axes_of(heads.effects, HEADS)
    assert [line.get_xdata().tolist() for line in removed.lines[:6:2]] == [[3, 5], [1, 3], [-0.5, 1.5]]
    assert added.get_title() == "fall of the base's NLL by it alone"


def test_of_many_runs_the_first_of_a_configuration_shows_its_heads():
    training = {"lr": 1.0, "init_seed": 0, "lora": None}
    runs = [
        row | {"params": json.dumps({"loss": {"type": "dft"}, "training": training | {"seed": seed}}), "seed": seed}
        for seed, row in enumerate(finished(*(f"dft-s{seed}" for seed in range(13))))
    ]
    rows = [effect("largest", 4.0, 1) | {"run": run["run"]} for run in runs]
    removed, _ = axes_of(heads.effects, view_of("dft-s0", runs=runs, head_effects=rows))
    assert len([line for line in removed.lines if line.get_gid()]) == 2, "a point and its interval"


def test_effects_of_heads_stand_beside_their_control():
    sheet = sheet_of(heads.switched, HEADS)
    assert [row[2] for row in sheet.rows] == ["1 query", "0 query", "random rows query"]
    assert sheet.rows[0][5:7] == ["9.0 %", ("4.00", "[3.00, 5.00]")]
    told = " ".join(heads.limits(HEADS))
    assert "Of 3 heads a run, 2 were switched off and on" in told
    assert "Queries are grouped" in told
    assert "No head of dpo was looked at: this run leaves attention's weights alone." in told
    lost = {"stage": "geometry", "part": "geometry.heads", "reason": "heads: 1 of 2 tasks failed."}
    rows = {"heads": [head(0, 1.0, 2.0), head(1, 3.0, 2.0)], "head_effects": [effect("largest", 4.0, 1)]}
    told = heads.limits(view_of(runs=RUNS, missing=[lost], **rows))
    assert told[0].startswith("Of 2 heads a run, 1 was switched off")
    assert told[-1] == "No head of dpo was looked at."
    assert not any("switched" in sentence for sentence in heads.limits(view_of(runs=RUNS, heads=rows["heads"])))
    found = {name: value for _, name, value in heads.metrics(HEADS)}
    assert found["heads/evenness/query"] == pytest.approx((1 + 9) ** 2 / (2 * (1 + 81)))
    assert found["heads/evenness_random/query"] == pytest.approx(1)
    assert found["heads/removed/largest"] == 4
    assert found["heads/added/control"] == 0.5


def line(run, direction, kind, sharpness, outcome="found"):
    row = {"run": run, "direction": direction, "kind": kind, "outcome": outcome, "sharpness": sharpness, "dip": -0.1}
    known = {"sharpness_low": 0.9 * sharpness, "sharpness_high": 1.1 * sharpness, "distance": 3.0} if sharpness else {}
    return row | known | {"quadratic": 5.0, "curvature": 0.3}


LINES = view_of(
    runs=RUNS,
    critical_sharpness=[
        line("base", "gradient", "own", 4.0),
        line("sft", "gradient", "own", 8.0),
        line("sft", "gradient", "random", 10.0),
        line("sft", "gradient", "random", 40.0) | {"curvature": 1.0},
        line("sft", "gradient", "random", None, "rises at once") | {"curvature": 4.0},
        line("sft", "delta", "own", 1.5),
        line("dpo", "delta", "own", None, "rises at once"),
    ],
)


def test_critical_sharpness_stands_beside_random_directions():
    gradient, delta = axes_of(critical.critical, LINES)
    crosses = [float(drawn.get_xdata()[0]) for drawn in gradient.lines if drawn.get_marker() == "x"]
    assert crosses == [10, 40]
    assert [float(drawn.get_xdata()[0]) for drawn in delta.lines if len(drawn.get_xdata()) == 1] == [1.5]
    sheet = sheet_of(critical.steps, LINES)
    row = row_of(sheet, "sft", "gradient")
    assert row["critical sharpness"] == ("8.00", "[7.20, 8.80]")
    assert row["random directions"] == ("20.0", "2 of 3"), "the geometric mean of those that have one"
    assert row["u'Hu of random directions"] == "1.77", "the mean of all three"
    assert row_of(sheet, "sft", "delta")["random directions"] == "–"
    assert critical.limits(LINES)[-1].startswith("Critical sharpness of random directions is that of the 2 of 3")
    assert row_of(sheet, "dpo", "delta")["critical sharpness"] == "–"
    assert "1 along the delta (own, rises at once)" in " ".join(critical.limits(LINES))
    few = [line("sft", "delta", "own", 2.0), line("dpo", "delta", "own", None, "rises at once")]
    assert "1 of 2 lines has no" in " ".join(critical.limits(view_of(runs=RUNS, critical_sharpness=few)))
    found = {(run, name): value for run, name, value in critical.metrics(LINES)}
    assert found["sft", "critical_sharpness/delta"] == 1.5
    assert found["dpo", "critical_sharpness/delta"] is None
    assert found["sft", "critical_sharpness/gradient_random"] == pytest.approx(20)
    assert found["sft", "critical_sharpness/gradient_curvature_random"] == pytest.approx(5.3 / 3)


def test_without_rows_nothing_is_shown():
    view = view_of(runs=RUNS)
    for plot in (ranks.truncation, heads.heads, heads.effects, critical.critical):
        assert plot.draw(view) is None
    for section in (ranks.least, heads.switched, critical.steps):
        assert section.sheets(view) == []
    for report in (ranks, heads, critical):
        assert report.limits(view) == []
        assert list(report.metrics(view)) == []


def test_a_curvature_that_rounding_hides_leaves_no_mean_of_the_others():
    lines = [line("sft", "gradient", kind, 8.0) for kind in ("own", "random", "random")]
    for hidden, mean in ((0.3, pytest.approx(0.3)), (None, None)):
        view = view_of(
            runs=RUNS, critical_sharpness=[*lines, line("sft", "gradient", "random", 2.0) | {"curvature": hidden}]
        )
        found = {name: value for _, name, value in critical.metrics(view)}
        assert found["critical_sharpness/gradient_curvature_random"] == mean
