"""Runs as typed records, and as rows of the table of runs."""

from dataclasses import asdict, replace

import pytest

from raygeo.records import FINISHED, RunRecord
from raygeo.tables import SCHEMAS, to_arrow

LOSS = {"type": "dpo", "beta": 0.1}
TRAINING = {"lr": 1e-4, "seed": 3, "init_seed": 7, "steps": None, "betas": [0.9, 0.999], "lora": {"r": 4}}
FULL = RunRecord(
    "dpo-s3", "key", FINISHED, LOSS, TRAINING, reason="none", steps=4, examples=9, tokens=80, seconds=1.5,
    delta="/store/deltas/key", student="student", mlflow_run_id="id", stored="bf16", model="/models/m",
    adapter_init="fingerprint", stages=[{"label": "dpo", "loss": LOSS, "training": TRAINING}], leg=1, leg_of="sft+dpo",
    started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:01:00+00:00",
)  # fmt: skip
STAGES = [{"label": name, "loss": LOSS | {"type": name}, "training": TRAINING} for name in ("sft", "dpo")]
STAGED = {"stages": STAGES, "leg": None, "leg_of": None}
FAILED = RunRecord("sft-s0", "other", "failed", {"type": "sft"}, TRAINING | {"lora": None}, reason="it fell over")
UNKNOWN = RunRecord("fetched", "third", FINISHED, model="/models/m")


def test_the_full_record_has_a_value_everywhere():
    assert None not in asdict(FULL).values()  # so that the tests below miss no field


@pytest.mark.parametrize("record", [FULL, FAILED, UNKNOWN])
def test_a_record_is_read_back_from_its_row_as_it_was(record):
    [row] = to_arrow("runs", [record.row()]).to_pylist()
    assert row.keys() == set(SCHEMAS["runs"].names)
    assert RunRecord.of(row) == record


def test_what_readers_look_for_has_columns_of_its_own():
    row = FULL.row()
    assert (row["lr"], row["seed"], row["init_seed"]) == (1e-4, 3, 7)
    assert [replace(FULL, **parts).row()["loss"] for parts in (STAGED, STAGED | {"leg": 2}, {"stages": None})] == [
        "sft+dpo", "dpo after sft", "dpo",
    ]  # fmt: skip
    assert not {"loss", "lr", "seed", "init_seed"} & UNKNOWN.row().keys()


def test_runs_are_of_one_condition_but_for_what_training_gave():
    again = replace(FULL, run="again", key="k", steps=9, seconds=3.0, adapter_init="another")
    assert again.condition == FULL.condition
    alone = replace(FULL, stages=None, leg=None)
    assert replace(alone, training=TRAINING | {"lr": 1e-3}).condition != alone.condition
    staged = replace(FULL, **STAGED).condition
    assert (staged.seed, staged.init_seed) == ((3, 3), (7, 7))
    assert (
        len({staged, replace(FULL, stages=STAGES, leg=2).condition, replace(FULL, stages=None, leg=None).condition})
        == 3
    )
    assert FAILED.condition.init_seed is None
    assert UNKNOWN.condition is None
