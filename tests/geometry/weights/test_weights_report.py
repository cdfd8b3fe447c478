"""What the page and the tracker show of the analyses of deltas."""

import json
import math
from importlib import import_module

import pytest
from matplotlib.figure import Figure
from view_cases import view_of

from raygeo.analyses.similarity.report import seed_pairs

NAMES = ("norms", "trajectories", "similarity", "cosine_baselines", "subspaces", "off_principal")
ANALYSES = {name: import_module(f"raygeo.analyses.{name}.analysis").ANALYSIS for name in NAMES}


def run_row(name, loss="sft", seed=0, init_seed=0, status="finished", **training):
    training = {"lr": 1e-4, "seed": seed, "init_seed": init_seed, "lora": None, **training}
    params = json.dumps({"loss": {"type": loss}, "training": training})
    return {"run": name, "key": name, "status": status, "loss": loss, "params": params}


def similar(pairs, **columns):
    both = {**pairs, **{(b, a): value for (a, b), value in pairs.items()}}
    return [
        {"run_a": a, "run_b": b, "scope": "global", "name": "", "cosine": value, **columns}
        for (a, b), value in both.items()
    ]


def metrics(name, view):
    return {(run, metric): value for make in ANALYSES[name].report.metrics for run, metric, value in make(view)}


def sheets(name, view):
    return {title: sheet for part in ANALYSES[name].report.sections for title, _, sheet in part.sheets(view)}


def caveats(name, view):
    return "\n".join(sentence for caveat in ANALYSES[name].report.caveats for sentence in caveat(view))


def test_without_rows_nothing_is_shown():
    view = view_of()
    for analysis in ANALYSES.values():
        parts = analysis.report
        assert [plot.draw(view) for plot in parts.figures] == [None] * len(parts.figures)
        assert not [row for make in (*parts.metrics, *parts.histories) for row in make(view)]
        assert not [sentence for caveat in parts.caveats for sentence in caveat(view)]
        assert not any(sheet.rows for part in parts.sections for *_, sheet in part.sheets(view))


def test_every_analysis_is_declared_in_order():
    assert [(a.name, a.order) for a in ANALYSES.values()] == list(zip(NAMES, range(100, 160, 10), strict=True))
    assert all(a.question.endswith("?") and a.default and not a.needs for a in ANALYSES.values())
    assert {a.name: a.after for a in ANALYSES.values() if a.after} == {"cosine_baselines": ("similarity",)}


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        ({}, {"seed": 1}, "data order"),
        ({"lora": {"r": 4}}, {"lora": {"r": 4}, "init_seed": 1}, "adapter initialisation"),
        ({"lora": {"r": 4}}, {"lora": {"r": 4}, "seed": 1, "init_seed": 1}, "data order and adapter initialisation"),
        ({}, {"init_seed": 1}, None),  # without an adapter nothing is drawn with it
        ({}, {}, None),
        ({}, {"seed": 1, "lr": 1e-3}, None),
        ({}, {"seed": 1, "loss": "dpo"}, None),
    ],
)
def test_a_noise_floor_is_of_runs_that_differ_in_seeds_alone(first, second, differs):
    rows = [run_row("a", **first), run_row("b", **second)]
    found = seed_pairs(view_of(runs=rows, similarity=similar({("a", "b"): 0.9})))
    assert set(found.differs) == ({differs} if differs else set())


def test_runs_of_unknown_training_have_no_noise_floor():
    rows = [{"run": name, "key": name, "status": "finished", "params": None} for name in "ab"]
    view = view_of(runs=rows, similarity=similar({("a", "b"): 0.9}))
    assert seed_pairs(view).empty
    (sheet,) = (s for title, s in sheets("similarity", view).items() if title == "Noise floor")
    assert sheet.rows == []


def test_the_noise_floor_counts_pairs_of_losses_at_least_as_alike():
    rows = [run_row("sft"), run_row("sft-1", seed=1), run_row("dpo", "dpo"), run_row("rft", "rft")]
    pairs = {("sft", "sft-1"): 0.8, ("sft", "dpo"): 0.85, ("sft-1", "dpo"): 0.2, ("sft", "rft"): 0.8}
    view = view_of(runs=rows, similarity=similar(pairs))
    assert sheets("similarity", view)["Noise floor"].rows == [["sft", "sft-1", "data order", "0.800", "2 of 3"]]


def test_cosines_to_the_reference_run_stand_in_the_results_and_the_tracker():
    rows = [run_row("sft"), run_row("dpo", "dpo")]
    similarity = similar({("sft", "dpo"): 0.25}, orthogonal_fraction=0.5, null_sd=0.01)
    similarity[0] |= {"orthogonal_fraction": 0.75}
    view = view_of(runs=rows, similarity=similarity)
    (column,) = ANALYSES["similarity"].report.columns
    assert (column.title, column.cells(view)) == ("cosine to ref.", {"dpo": "0.25", "sft": "1"})
    assert metrics("similarity", view) == {
        ("dpo", "cosine_to_reference"): 0.25,
        ("dpo", "orthogonal_to_reference"): 0.5,  # that of the reference run without the direction of dpo
    }
    assert sheets("similarity", view)["Every run against sft"].rows == [["dpo", "0.250", "0.010", "0.750"]]
    failed = view_of(runs=[run_row("sft", status="diverged"), rows[1]])
    assert column.cells(failed) == {}
    assert isinstance(ANALYSES["similarity"].report.figures[0].draw(view), Figure)


def test_trajectories_are_curves_by_step_and_laws_at_step_0():
    steps = [
        {"run": "dpo", "step": step, "norm": 0.5 * step, "cosine_final": step / 9, "cosine_reference": known}
        for step, known in ((1, None), (9, 0.25))
    ]
    fits = [
        {"run": "dpo", "law": "log", "n": 4, "a": -0.5, "b": 1.5, "rss": 0.25, "aic": 3.0},
        {"run": "dpo", "law": "power", "n": 4},
    ]
    view = view_of(runs=[run_row("dpo", "dpo")], trajectories=steps, trajectory_fits=fits)
    (make,) = ANALYSES["trajectories"].report.histories
    assert [row[0] for row in make(view)] == ["dpo"] * 14
    points = {(metric.removeprefix("trajectory/"), step): value for _, metric, step, value in make(view)}
    assert points == {
        ("norm", 1): 0.5, ("cosine_final", 1): 1 / 9, ("cosine_reference", 1): None,
        ("norm", 9): 4.5, ("cosine_final", 9): 1.0, ("cosine_reference", 9): 0.25,
        ("log_a", 0): -0.5, ("log_b", 0): 1.5, ("log_rss", 0): 0.25, ("log_aic", 0): 3.0,
        ("power_a", 0): None, ("power_b", 0): None, ("power_rss", 0): None, ("power_aic", 0): None,
    }  # fmt: skip
    (cells,) = sheets("trajectories", view)["Trajectories"].rows
    assert cells[:4] == ["dpo", "2", ("−0.500 + 1.50 log t", "RSS 0.25"), "–"]


def test_caveats_of_trajectories_follow_how_runs_were_trained():
    steps = [{"run": "sft", "step": step, "norm": 1.0} for step in (1, 9)]

    def said(**training):
        return caveats("trajectories", view_of(runs=[run_row("sft", **training)], trajectories=steps))

    assert "2 kept steps a run" in said()
    assert "Learning rates fell" in said(lr_scheduler_type="linear")
    assert "Learning rates fell" not in said(lr_scheduler_type="constant")
    assert "Learning rates fell" not in said(lr_scheduler_type="cosine", final_lr=1.0)
    for schedule_steps, falls in ((10, True), (100, False)):
        training = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "schedule_steps": schedule_steps}
        runs = [run_row("sft", **training) | {"steps": 10}]
        found = caveats("trajectories", view_of(runs=runs, trajectories=steps))
        assert ("Learning rates fell" in found) == falls
    assert "have 1 kept step a run" in caveats("trajectories", view_of(trajectories=steps[:1]))
    assert "LoRA starts with B at zero" in said(lora={"r": 4})
    assert "LoRA starts with B at zero" not in said()


def test_baselines_to_the_reference_run_are_logged_and_what_they_do_not_say():
    pair = {"run_a": "dpo", "run_b": "sft", "cosine": 0.3, "z": 12.0, "matched_centred_cosine": -0.1}
    pairs = [pair | {"matched_distance": 2.0}, pair | {"run_b": "rft"}]
    floor = {"configuration_a": "sft", "configuration_b": "sft", "seeds": "order", "n": 1, "mean": 0.9}
    floors = [floor, floor | {"configuration_b": "dpo", "disattenuated": 1.1}]
    tests = [{"like": "", "runs": 4, "losses": 2, "reason": "too few"}, {"like": "sft", "reason": "other"}]
    axes = [{"scaling": "raw", "axis": i + 1, "share": share} for i, share in enumerate((0.5, 0.2, 0.3))]
    view = view_of(cosine_baselines=pairs, noise_floors=floors, permutation_tests=tests, mds_axes=axes)
    assert metrics("cosine_baselines", view) == {
        ("dpo", "cosine_z_to_reference"): 12.0,
        ("dpo", "centred_cosine_to_reference"): -0.1,
        ("dpo", "matched_distance_to_reference"): 2.0,
    }
    said = caveats("cosine_baselines", view)
    assert "not tested here: too few." in said
    assert "other" not in said.replace("other seeds", "")
    assert "as few as 1 pair of runs, and have no interval. 1 of 1 exceeds 1" in said
    assert "holds 70.0 % of the variance" in said


def test_angles_to_the_reference_run_are_medians_over_modules():
    rows = []
    for module, angles in {"q": (10.0, 40.0), "k": (20.0, 60.0), "v": (24.0, 89.0)}.items():
        for index, angle in enumerate(angles):
            place = {"run_a": "sft", "run_b": "dpo", "module": module, "layer": 0, "k": 2, "dimension": 32}
            rows += [
                place | {"side": side, "index": index, "angle_degrees": angle, "null_degrees": 70.0 + 15 * index}
                for side in ("left", "right")
            ]
    rows.append(rows[0] | {"run_a": "rft", "angle_degrees": 1.0})
    view = view_of(subspaces=rows)
    assert metrics("subspaces", view) == {("dpo", "first_left_angle_to_reference"): 20.0}
    cell = ("20° to 60°", "chance 70° to 85°")
    assert sheets("subspaces", view)["Principal angles to sft"].rows == [["dpo", cell, cell]]
    assert "(2 directions) run from 70° to 85° on the left and 70° to 85° on the right" in caveats("subspaces", view)


def test_overlaps_of_both_main_masks_are_logged():
    place = {"run": "dpo", "scope": "global", "module": ""}
    masks = [place | {"mask": mask, "overlap": share} for mask, share in (
        ("principal", 0.2), ("low-magnitude", 0.4), ("principal only", 0.1), ("neither", None))]  # fmt: skip
    layer = {"run": "dpo", "scope": "layer", "layer": 0}
    whole = {"update_sparsity": 0.9, "absolute_sparsity": 0.3, "gaussian_sparsity": 0.2, "spectral_shift": 0.01}
    rows = [place | {"entries": 1000} | whole, layer | {"entries": 9}]
    view = view_of(off_principal=rows, mask_overlaps=[*masks, layer | {"mask": "principal", "overlap": 0.7}])
    assert metrics("off_principal", view) == {
        ("dpo", "update_sparsity"): 0.9,
        ("dpo", "absolute_sparsity"): 0.3,
        ("dpo", "gaussian_sparsity"): 0.2,
        ("dpo", "spectral_shift"): 0.01,
        ("dpo", "principal_overlap"): 0.2,
        ("dpo", "low_magnitude_overlap"): 0.4,
    }
    assert "Sparsity counts entries of 1\u2009000" in caveats("off_principal", view)
    (cells,) = sheets("off_principal", view)["Weights before and after"].rows
    assert cells[1] == ("90 %", "of 1\u2009000")


def norm_rows(**norms):
    return [
        {"run": run, "scope": "global", "module": "", "norm": norm, "base_norm": 100.0, "relative_norm": norm / 100}
        for run, norm in norms.items()
    ]


def test_norms_stand_in_the_results_and_the_tracker():
    deltas = [norm_rows(sft=2.0)[0] | {"effective_rank": 3.0}, norm_rows(sft=1.0)[0] | {"scope": "layer", "layer": 0}]
    view = view_of(runs=[run_row("sft")], deltas=deltas)
    found = {column.title: column.cells(view) for column in ANALYSES["norms"].report.columns}
    assert found == {"‖Δ‖": {"sft": "2.00"}, "‖Δ‖/‖W‖": {"sft": "2.0 %"}}
    assert metrics("norms", view) == {
        ("sft", "delta_norm"): 2.0,
        ("sft", "delta_relative_norm"): 0.02,
        ("sft", "delta_effective_rank"): 3.0,
        ("sft", "delta_stable_rank"): None,
    }


def test_caveats_of_norms_tell_of_other_bases_and_of_runs_that_are_not_matched():
    runs = [run_row("sft"), run_row("dpo", "dpo")]
    assert caveats("norms", view_of(runs=runs, deltas=norm_rows(sft=2.0, dpo=2.4))) == ""
    said = caveats("norms", view_of(runs=runs, deltas=norm_rows(sft=2.0, dpo=140.0)))
    assert "The delta of dpo is 140.0 % as long as the base weights" in said
    assert "the delta of dpo is 70 times as long as that of sft" in said


@pytest.mark.parametrize(
    ("stored", "norm", "doubtful"),
    [("BF16", 1.0, False), ("BF16", 0.3, True), ("F16", 0.1, False), ("F16", 0.03, True)],
)
def test_rounding_is_held_against_the_length_of_a_delta(stored, norm, doubtful):
    run = {"run": "a", "key": "a", "status": "finished", "params": json.dumps({"stored": stored})}
    said = caveats("norms", view_of(runs=[run], deltas=norm_rows(a=norm)))
    spacing = {"BF16": 2.0**-7, "F16": 2.0**-10}[stored]
    assert f"to {float(f'{100 * spacing / math.sqrt(12):.2g}')} % of the base norm" in said
    assert ("most of it may be rounding" in said) == doubtful
