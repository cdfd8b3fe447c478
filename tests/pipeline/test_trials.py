import json
from types import SimpleNamespace

import pytest
from study_cases import tiny_study

from raygeo.analyses.registry import schemas
from raygeo.errors import DataError
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.trials import publish_trials
from raygeo.tables import to_arrow

pytestmark = pytest.mark.cluster

ACCURACY, NORM = "eval/heldout/accuracy", "geometry/delta_norm"


@pytest.fixture
def sweep(store):
    """A study of three rates and two seeds, with what was found of its runs: accuracy and norm by run."""
    study = parse_study(
        tiny_study(
            runs=[{"loss": {"type": "sft"}, "lr": [1e-4, 1e-3, 1e-2], "seed": [0, 1]}],
            sweep={"objectives": [{"metric": "eval/accuracy"}], "constraints": [{"metric": NORM, "at_most": 2.0}]},
        )
    )
    found = {
        "sft-lr0.0001-s0": (0.4, 1.0), "sft-lr0.0001-s1": (0.6, 1.0),
        "sft-lr0.001-s0": (0.6, 1.0), "sft-lr0.001-s1": (0.6, 2.5),  # in the mean within the bound, which is of means
        "sft-lr0.01-s0": (0.9, 9.0), "sft-lr0.01-s1": (0.9, 9.0),
    }  # fmt: skip

    def publish(found, *, analysed, finished=tuple(found)):
        rows = {
            "runs": [{"run": r, "key": r, "status": "finished" if r in finished else "diverged"} for r in found],
            "accuracy": [{"run": r, "benchmark": "heldout", "accuracy": a} for r, (a, _) in found.items()],
            "deltas": [{"run": r, "scope": "global", "norm": n} for r, (_, n) in found.items() if n is not None],
        }
        for table, given in rows.items():
            store.publish_rows(table, to_arrow(table, given, schemas()[table]))
        publish_trials(SimpleNamespace(store=store, study=study), study.plan.trials(), analysed=analysed)
        return {row["run"]: row for row in store.table("trials").to_pylist()}

    return publish, found, store


def test_configurations_are_ranked_by_means_over_seeds_within_bounds_first(sweep):
    publish, found, store = sweep
    rows = publish(found, analysed=True)
    assert [(row["rank"], row["keeps"]) for row in rows.values()] == [
        (2, True), (2, True), (1, True), (1, True), (3, False), (3, False),
    ]  # fmt: skip
    assert json.loads(rows["sft-lr0.001-s1"]["measured"]) == {ACCURACY: 0.6, NORM: 2.5}
    assert store.table("objectives").to_pylist() == [
        {"metric": ACCURACY, "mode": "max", "at_most": None, "at_least": None},
        {"metric": NORM, "mode": None, "at_most": 2.0, "at_least": None},
    ]


def test_tables_of_analyses_do_not_count_until_they_are_this_study_s(sweep):
    publish, found, _ = sweep
    rows = publish(found, analysed=False)
    assert {row["rank"] for row in rows.values()} == {None}
    assert json.loads(rows["sft-lr0.01-s0"]["measured"]) == {ACCURACY: 0.9}


def test_a_configuration_of_which_a_seed_did_not_finish_has_no_rank(sweep):
    publish, found, _ = sweep
    rows = publish(found, analysed=True, finished=tuple(found)[:-1])
    assert rows["sft-lr0.01-s0"]["rank"] is None
    assert rows["sft-lr0.01-s1"]["measured"] == "{}"
    assert rows["sft-lr0.001-s0"]["rank"] == 1


def test_what_was_measured_of_no_run_is_said(sweep):
    publish, found, _ = sweep
    with pytest.raises(DataError, match="geometry/delta_norm was measured of no run"):
        publish({run: (accuracy, None) for run, (accuracy, _) in found.items()}, analysed=True)
