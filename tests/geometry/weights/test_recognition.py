from dataclasses import replace

import numpy as np
import pytest
from delta_cases import all_rows
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from view_cases import row_of, sheet_of, view_of

from raygeo.analyses.loss_classifier.report import accuracies, confounded
from raygeo.analyses.loss_classifier.workload import LossClassifier, LossClassifierSettings
from raygeo.analyses.norms.workload import Norms
from raygeo.geometry.weights.recognition import chance, permuted_accuracies, recognise
from raygeo.models.run import Run
from raygeo.records import RunRecord
from raygeo.tables import BASE, to_arrow
from raygeo.training.settings import TrainingSettings

TYPES = ("self_attn.q_proj", "mlp.up_proj")
TRAINING = TrainingSettings(steps=4).model_dump(mode="json")


def points(spread, seed=0, losses=3, seeds=4, features=5):
    """Runs of several losses and seeds around one point a loss."""
    rng = np.random.default_rng(seed)
    labels, folds = np.tile(np.arange(losses), seeds), np.repeat(np.arange(seeds), losses)
    return (
        rng.normal(size=(losses, features))[labels] + spread * rng.normal(size=(len(labels), features)),
        labels,
        folds,
    )


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_predictions_are_scikit_learns(spread, seed):
    values, labels, folds = points(spread, seed)
    model = make_pipeline(StandardScaler(), NearestCentroid())
    expected = cross_val_predict(model, values, labels, groups=folds, cv=LeaveOneGroupOut())
    np.testing.assert_array_equal(recognise(values, labels, folds), expected)


def test_features_that_do_not_vary_elsewhere_are_left_out():
    values, labels, folds = points(0.5)
    alone = np.where(folds == 0, 1e9, 3.0)[:, None]
    np.testing.assert_array_equal(
        recognise(np.hstack([values, alone]), labels, folds)[folds == 0], recognise(values, labels, folds)[folds == 0]
    )


def test_what_is_held_out_takes_no_part_in_what_is_learned():
    values, labels, folds = points(1.0)
    before = recognise(values, labels, folds)
    values[0], labels[0] = 50.0, 2
    after = recognise(values, labels, folds)
    np.testing.assert_array_equal(after[1:3], before[1:3])


def test_the_null_of_noise_is_chance_and_its_p_values_are_uniform():
    low = 0
    for seed in range(60):
        values, labels, folds = points(1.0, seed)
        values = np.random.default_rng(seed).normal(size=values.shape)
        null = permuted_accuracies(values, labels, folds, folds, 99, seed)
        low += (1 + (null >= (recognise(values, labels, folds) == labels).mean() - 1e-12).sum()) / 100 <= 0.1
    assert low <= 12
    assert null.mean() == pytest.approx(1 / 3, abs=0.06)


def test_permutations_keep_the_losses_of_runs_that_are_alike():
    values, labels, folds = np.zeros((4, 1)), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    assert set(permuted_accuracies(values, labels, folds, folds, 20, 0)) == {0.0}, "each has one loss, so none is moved"


def test_chance_is_the_most_frequent_loss_elsewhere():
    assert chance(np.array([0, 0, 1, 0, 0, 1]), np.array([0, 0, 0, 1, 1, 1])) == 4 / 6
    assert chance(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == 0.5


def study(apart, losses=("sft", "dpo"), seeds=(0, 1, 2), missing=()):
    """Runs, their rows of ``deltas``, and records; ``apart`` is by how much the ranks of losses differ."""
    rng, rows, records = np.random.default_rng(1), [], {}
    for place, loss in enumerate(losses):
        for seed in seeds:
            name = f"{loss}-s{seed}"
            if name in missing:
                continue
            records[name] = RunRecord(name, name, "finished", {"type": loss}, TRAINING | {"seed": seed}, steps=4)
            for layer in (0, 1):
                for kind in TYPES:
                    rank = np.exp(1 + apart * place + 0.1 * rng.random())
                    rows.append(
                        {"run": name, "module": f"model.layers.{layer}.{kind}", "layer": layer, "scope": "module"}
                        | {"norm": np.exp(rng.random()), "stable_rank": rank, "effective_rank": 2 * rank}
                        | {"participation_rank": 3 * rank}
                    )
            rows.append({"run": name, "module": "model.norm", "scope": "module", "norm": 1.0})
    runs = [Run(BASE, BASE, None), *(Run(name, name, name) for name in records)]
    return runs, to_arrow("deltas", rows, Norms.tables["deltas"]), records


def tables_of(*given):
    return all_rows(LossClassifier(LossClassifierSettings(permutations=99), *given))


def test_losses_that_differ_in_ranks_are_recognised_by_spectra_beside_chance():
    found = tables_of(*study(1.0))
    rows = {row["features"]: row for row in found["loss_classifier"]}
    assert list(rows) == ["norms", "spectra", "both"]
    row = rows["spectra"]
    assert (row["runs"], row["losses"], row["seeds"], row["dimension"]) == (6, 2, 3, 2 * 3)
    assert (row["accuracy"], row["correct"], row["chance"]) == (1, 6, 0.5)
    assert row["null_mean"] == pytest.approx(0.5, abs=0.15)
    assert 1 / 100 < row["p"] < 0.5, "two losses and three seeds can be labeled alike by chance"
    assert rows["norms"]["accuracy"] < 1
    assert all(row["loss"] == row["predicted"] for row in found["loss_predictions"] if row["features"] != "norms")


def test_without_two_losses_of_two_seeds_the_reason_is_said():
    for given, reason in (
        (study(1.0, seeds=(0,)), "no loss has runs of two seeds"),
        (study(1.0, missing=("dpo-s1", "dpo-s2")), "one loss has runs of two seeds"),
    ):
        found = tables_of(*given)
        (row,) = found["loss_classifier"]
        assert row["reason"].startswith(reason)
        assert row.get("accuracy") is None
        assert found["loss_predictions"] == []


def test_a_loss_of_one_seed_and_runs_of_unknown_training_take_no_part():
    runs, deltas, records = study(1.0, losses=("sft", "dpo", "kto"), missing=("kto-s1", "kto-s2"))
    assert {row["loss"] for row in tables_of(runs, deltas, records)["loss_predictions"]} == {"sft", "dpo"}
    known = {name: record for name, record in records.items() if name != "sft-s0"}
    assert "sft-s0" not in {row["run"] for row in tables_of(runs, deltas, known)["loss_predictions"]}
    assert LossClassifier(LossClassifierSettings(), runs, deltas, {}).tasks() == []


def test_only_runs_alike_in_all_but_the_loss_are_permuted():
    runs, deltas, records = study(1.0)
    rates = {"sft": 1e-5, "dpo": 1e-6}
    apart = {n: replace(r, training=r.training | {"lr": rates[r.label]}) for n, r in records.items()}
    given = tables_of(runs, deltas, apart)["loss_classifier"]
    assert [row["accuracy"] for row in given][1:] == [1, 1]
    assert {(row.get("p"), row.get("null_mean")) for row in given} == {(None, None)}
    assert {row["reason"].partition(",")[0] for row in given} == {
        "no two runs of different losses agree in settings and seeds"
    }
    seen = view_of(
        loss_classifier=to_arrow("loss_classifier", given, LossClassifier.tables["loss_classifier"]).to_pylist()
    )
    assert row_of(sheet_of(accuracies, seen), "spectra")["p"] == "–"
    assert confounded(seen)[0].startswith("Recognised losses are not tested: no two runs")


def test_a_run_in_stages_goes_by_all_of_them_and_by_its_first_data_order():
    runs, deltas, records = study(1.0, losses=("sft", "dpo"))

    def staged(record, first):
        stages = [{"label": name, "loss": {"type": name}, "training": record.training} for name in (first, "dpo")]
        stages[1]["training"] = record.training | {"seed": 7, "init_seed": int(record.training["seed"])}
        return replace(record, loss={"type": "dpo"}, stages=stages)

    known = {name: staged(record, record.label) for name, record in records.items()}
    found = tables_of(runs, deltas, known)
    assert {row["loss"] for row in found["loss_predictions"]} == {"sft+dpo", "dpo+dpo"}
    assert found["loss_classifier"][0]["seeds"] == 3
    assert {record.lr for record in known.values()} == {None}
    again = {
        n: replace(r, training=r.training | {"seed": 0, "init_seed": i}) for i, (n, r) in enumerate(records.items())
    }
    [row] = tables_of(runs, deltas, again)["loss_classifier"]
    assert row["reason"].startswith("no loss has runs of two seeds"), "adapters make no data order"
