"""What is shown of intruders, power laws, signs, recognition, locking and rank-1 trajectories."""

import json

import pytest
from view_cases import axes_of, finished, row_of, sheet_of, titles, view_of

from raygeo.analyses.intruders import report as intruders
from raygeo.analyses.layer_alpha import report as layer_alpha
from raygeo.analyses.loss_classifier import report as classifier
from raygeo.analyses.rank_one import report as rank_one
from raygeo.analyses.sign_interference import report as signs
from raygeo.analyses.subspace_locking import report as locking
from raygeo.tables import BASE

WHOLE = {"scope": "global", "module": ""}


def study(**rows):
    return view_of(runs=[row | {"steps": 100} for row in finished("sft", "dpo")], **rows)


def test_intruders_stand_beside_those_of_a_random_delta_and_the_first_epsilon_is_tracked():
    row = WHOLE | {"run": "dpo", "directions": 40, "intruders": 4, "null_intruders": 10, "intruder_share": 0.1}
    row |= {"null_intruder_share": 0.25, "energy_share": 0.5, "null_energy_share": 0.75}
    view = study(intruders=[row | {"epsilon": 0.5}, row | {"epsilon": 0.9, "intruder_share": 1.0}])
    cells = row_of(sheet_of(intruders.intruders, view), "dpo", "0.50")
    assert cells["intruders"] == ("4", "random 10")
    assert cells["share of ‖Δ‖²"] == ("50 %", "random 75 %")
    assert dict(entry[1:] for entry in intruders.metrics(view)) == {
        "intruder_share": 0.1, "intruder_energy_share": 0.5,
        "random_intruder_share": 0.25, "random_intruder_energy_share": 0.75,
    }  # fmt: skip


def test_alphas_are_drawn_by_layer_and_matrices_without_a_law_are_told():
    law = {"matrices": 3, "alpha": 3.5, "error": 0.25, "distance": 0.05}
    rows = [
        place | law | {"run": run, "layer": layer} | ({} if run == BASE else {"change": -0.1, "null_change": -0.02})
        for run in (BASE, "sft")
        for place, layer in ((WHOLE, None), (WHOLE | {"scope": "layer"}, 0), (WHOLE | {"scope": "layer"}, 1))
    ]
    view = study(layer_alpha=[*rows, {"run": BASE, "scope": "module", "module": "m", "matrices": 0}])
    assert titles(axes_of(layer_alpha.alphas, view)) == ["alpha", "change of alpha from the base"]
    assert row_of(sheet_of(layer_alpha.means, view), "sft")["change"] == ("−0.10", "random −0.020")
    assert "–" in row_of(sheet_of(layer_alpha.means, view), BASE).values()
    assert layer_alpha.laws(view)[1].endswith("left out: 1.")


def test_signs_stand_beside_both_nulls_the_most_opposed_first():
    row = WHOLE | {"null_share": 0.5, "shuffled_share": 0.49, "norm_ratio": 4.0, "weighted_share": 0.3}
    rows = [row | {"run_a": "dpo", "run_b": "sft", "share": 0.4}]
    view = study(sign_interference=rows)
    (cells,) = sheet_of(signs.opposite_signs, view).rows
    assert cells == ["sft", "dpo", ("40 %", "random 50 %, shuffled 49 %"), "30 %", "0.25"]
    assert ("dpo", "sign_interference_to_reference", 0.4) in list(signs.metrics(view))
    assert "agreement. Signs of small entries count as much" in signs.half(view)[0]
    training = {"lr": 1.0, "seed": 0, "init_seed": 0, "lora": {"r": 4}}
    adapted = finished("sft")[0] | {"params": json.dumps({"loss": {"type": "sft"}, "training": training})}
    assert "a LoRA product" in signs.half(view_of(runs=[adapted], sign_interference=rows))[0]


def test_recognition_stands_beside_chance_and_mistakes_are_counted():
    row = {"features": "spectra", "runs": 4, "losses": 2, "seeds": 2, "dimension": 12, "correct": 3, "accuracy": 0.75}
    row |= {"chance": 0.5, "null_mean": 0.48, "null_high": 0.75, "p": 0.21, "draws": 999, "reason": ""}
    said = [("sft", "sft"), ("dpo", "sft")]
    predictions = [{"features": "spectra", "run": run, "loss": run, "predicted": other} for run, other in said]
    view = study(loss_classifier=[row], loss_predictions=predictions)
    cells = row_of(sheet_of(classifier.accuracies, view), "spectra")
    assert cells["accuracy"] == ("75 %", "3 of 4")
    assert (cells["most frequent"], cells["permuted"], cells["p"]) == ("50 %", ("48 %", "95 %: 75 %"), "0.210")
    assert classifier.confusion.make(view)["spectra"].rows == [["sft", "1", "0"], ["dpo", "1", "0"]]
    assert list(classifier.metrics(view)) == [
        ("sft", "loss_recognised/spectra", 1.0), ("dpo", "loss_recognised/spectra", 0.0),
    ]  # fmt: skip


def test_losses_that_cannot_be_recognised_are_told_with_the_reason():
    view = study(loss_classifier=[{"features": "", "runs": 0, "losses": 0, "reason": "no loss has two seeds"}])
    assert sheet_of(classifier.accuracies, view).rows[0][-1] == "no loss has two seeds"
    assert classifier.confounded(view) == ["Losses could not be recognised by their deltas: no loss has two seeds."]


@pytest.mark.parametrize(
    ("similarities", "settled"),
    [((0.2, 0.5, 0.6), 0.04), ((0.7, 0.3, 0.8), 0.3), ((0.9, 0.9, 0.9), 0.01), ((0.9, 0.9, 0.1), 1.0)],
)
def test_a_run_has_settled_where_similarity_stays_half_way_from_chance(similarities, settled):
    """With chance at 0 half way is 0.5; a step at which it falls below begins anew, and the end itself is 1."""
    row = WHOLE | {"run": "sft", "side": "left", "k": 8, "null": 0.0}
    steps = zip((1, 4, 30), similarities, strict=True)
    view = study(subspace_locking=[row | {"step": step, "similarity": value} for step, value in steps])
    found = {name: value for _, name, value in locking.metrics(view)}
    assert found["subspace_locked_at/left"] == settled
    assert found["subspace_locking/left"] == pytest.approx(sum(similarities) / 3)
    cells = row_of(sheet_of(locking.settled, view), "sft")
    assert cells["left, settled at"] == f"{100 * settled:.1f} %"
    assert cells["right, mean"] == "–"


def test_rank_one_stands_beside_orthogonal_moves_and_says_where_nothing_is_foretold():
    row = WHOLE | {"snapshots": 9, "share": 0.95, "null_share": 0.8, "r2_linear": 0.9, "null_r2_linear": 0.92}
    rows = [row | {"run": "sft", "early": 5, "error": 0.7, "scaled_error": 0.6}, row | {"run": "dpo"}]
    view = study(rank_one=rows)
    cells = row_of(sheet_of(rank_one.lines, view), "sft")
    assert (cells["rank 1"], cells["R², step"]) == (("95 %", "orthogonal 80 %"), ("0.90", "orthogonal 0.92"))
    assert (cells["line's error"], cells["stretched"], cells["held"]) == ("70 %", "60 %", "–")
    assert "early in dpo," in rank_one.few_points(view)[1]


@pytest.mark.parametrize("module", [intruders, layer_alpha, signs, classifier, locking, rank_one])
def test_nothing_is_said_of_what_was_not_asked_for(module):
    view = study()
    caveats = (intruders.thresholds, layer_alpha.laws, signs.half, classifier.confounded, locking.confined,
               rank_one.few_points)  # fmt: skip
    assert [sentence for caveat in caveats for sentence in caveat(view)] == []
    assert list(module.metrics(view)) == []
