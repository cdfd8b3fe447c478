from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from delta_cases import Q, gaussian
from tiny import tiny_qwen

from raygeo.analyses.inputs import AnalysisInputs
from raygeo.analyses.off_principal.workload import OffPrincipal, OffPrincipalSettings
from raygeo.analyses.registry import analyses
from raygeo.cluster.execution import in_process
from raygeo.errors import ConfigError, DataError
from raygeo.losses.dpo import DPO
from raygeo.losses.sft import SFT
from raygeo.models.delta import save_full_delta
from raygeo.models.lora import LoraSettings
from raygeo.models.run import Run
from raygeo.pipeline.config import parse_study, study_yaml
from raygeo.pipeline.context import StageContext
from raygeo.pipeline.geometry import analyse
from raygeo.pipeline.published import published
from raygeo.pipeline.written import read_yaml
from raygeo.records import RunRecord
from raygeo.store import Store
from raygeo.tables import BASE, to_arrow
from raygeo.training.settings import TrainingSettings

pytestmark = pytest.mark.cluster

STUDY = {"name": "s", "rollouts": {"sample": {}}, "runs": [{"loss": {"type": "sft"}}]}


def record(name="run", loss=None, **training):
    training = TrainingSettings(**training).model_dump(mode="json")
    return RunRecord(name, name, "finished", loss=(loss or SFT()).model_dump(mode="json"), training=training, steps=4)


def condition(**training):
    return record(**training).condition


def inputs(store, base, runs, records, **more):
    return AnalysisInputs(
        base=base, runs=runs, reference=records[0].run, records={record.run: record for record in records},
        table=lambda name: published(store, name), make_probes=dict, **more,
    )  # fmt: skip


def only(*names):
    geometry = parse_study(STUDY).geometry
    off = dict.fromkeys(type(geometry).model_fields)
    return geometry.model_copy(update=off | {name: getattr(geometry, name) for name in names})


def test_a_record_survives_the_table_of_runs():
    kept = record("a", DPO(beta=0.3), lr=1e-3, lora=LoraSettings(r=4, lora_alpha=8))
    (row,) = to_arrow("runs", [kept.row()]).to_pylist()
    assert RunRecord.of(row) == kept
    assert (row["loss"], row["lr"], row["seed"]) == ("dpo", 1e-3, 0)
    bare = RunRecord("m", "k", "finished", stored="BF16", model="some/model")
    (row,) = to_arrow("runs", [bare.row()]).to_pylist()
    assert RunRecord.of(row) == bare
    assert bare.condition is None


def test_seeds_are_apart_from_settings():
    one, other, faster = condition(), condition(seed=1), condition(lr=1e-3)
    assert one.configuration == other.configuration != faster.configuration
    assert one.seeds(other) == "order"
    assert one.seeds(condition(seed=0)) == "same"


def test_an_adapter_seed_counts_only_where_there_is_an_adapter():
    assert condition() == condition(init_seed=3)
    lora = LoraSettings(r=4, lora_alpha=8)
    assert condition(lora=lora).seeds(condition(lora=lora, init_seed=3)) == "init"


def test_cosines_are_judged_by_how_runs_were_trained_and_an_analysis_not_asked_for_is_emptied(tmp_path):
    tiny_qwen().save_pretrained(tmp_path / "base")
    store, runs = Store(str(tmp_path / "store")), []
    for seed in (0, 1):
        save_full_delta(tmp_path / f"sft-s{seed}", {Q.format(0) + ".weight": gaussian(32, 32, seed=seed)})
        runs.append(Run(f"sft-s{seed}", f"sft-s{seed}", str(tmp_path / f"sft-s{seed}")))
    records = [record(f"sft-s{seed}", seed=seed) for seed in (0, 1)]
    asked, given = only("similarity", "cosine_baselines"), inputs(store, tmp_path / "base", runs, records)
    context = StageContext(store, in_process)
    stale = published(store, "sharpness").schema
    store.publish_rows("sharpness", to_arrow("sharpness", [{"run": "sft-s0", "measure": "sam", "value": 1.0}], stale))
    analyse(context, asked, given)
    context.check_whole()
    assert store.table("sharpness").num_rows == 0, "an analysis that is no longer asked for is still shown"
    (row,) = store.table("cosine_baselines").to_pylist()
    assert (row["same_loss"], row["same_settings"], row["seeds"]) == (True, True, "order")
    (floor,) = store.table("noise_floors").to_pylist()
    assert (floor["configuration_a"], floor["seeds"], floor["mean"]) == ("sft-s0", "order", row["cosine"])
    assert store.table("permutation_tests")["reason"][0].as_py().startswith("no loss has runs of two seeds")
    assert {r["run"] for r in store.table("mds").to_pylist() if r["x"] > 0 and r["y"] == 0} == {"sft-s0"}


def test_seed_groups_are_of_one_configuration(tmp_path):
    store = Store(str(tmp_path))
    trained = {"b1-s0": (0.1, {"seed": 0}), "b1-s1": (0.1, {"seed": 1}), "b5-s1": (0.5, {"seed": 1}),
               "b1-fast": (0.1, {"seed": 2, "lr": 1e-3})}  # fmt: skip
    records = [record(name, DPO(beta=beta), **training) for name, (beta, training) in trained.items()]
    runs = [Run(BASE, "k", None), *(Run(name, name, name) for name in trained)]
    given = inputs(store, tmp_path, runs, records)
    assert given.seed_groups == {
        "seeds of b1-s0": ["b1-s0", "b1-s1"], "seeds of b5-s1": ["b5-s1"], "seeds of b1-fast": ["b1-fast"],
    }  # fmt: skip
    assert replace(given, records={}).seed_groups == {}


def test_what_is_made_of_another_analysis_must_come_with_it():
    off = {"similarity": None}
    with pytest.raises(ConfigError, match=r"geometry.cosine_baselines is made of what geometry.similarity finds"):
        parse_study(STUDY | {"geometry": off | {"cosine_baselines": {}}})
    assert parse_study(STUDY | {"geometry": off | {"cosine_baselines": None}}).geometry.similarity is None
    study = parse_study(STUDY | {"geometry": {"norms": None}})
    assert "prescreen" in analyses()
    assert study.geometry.prescreen is None, "nobody asked for it"
    assert parse_study(read_yaml(study_yaml(study))) == study
    with pytest.raises(ConfigError, match=r"geometry\.yardsticks: is now called 'cosine_baselines'"):
        parse_study(STUDY | {"geometry": {"yardsticks": None}})


def test_an_analysis_that_needs_training_fails_alone_where_none_is_known(tmp_path):
    tiny_qwen().save_pretrained(tmp_path / "base")
    save_full_delta(tmp_path / "a", {Q.format(0) + ".weight": gaussian(32, 32, seed=0)})
    store = Store(str(tmp_path / "store"))
    context = StageContext(store, in_process)
    runs = [Run(BASE, BASE, None), Run("a", "a", str(tmp_path / "a"))]
    analyse(context, only("norms", "coherence"), inputs(store, tmp_path / "base", runs, [record("a")]))
    assert list(context.missing) == ["geometry.coherence"]
    assert isinstance(context.missing["geometry.coherence"], DataError)
    assert store.table("deltas").num_rows


def test_totals_stand_below_the_rows_of_modules(tmp_path):
    tiny_qwen().save_pretrained(tmp_path / "base")
    runs = []
    for index, name in enumerate("ab"):
        save_full_delta(
            tmp_path / name, {Q.format(i) + ".weight": 1e-3 * gaussian(32, 32, seed=index + i) for i in (0, 1)}
        )
        runs.append(Run(name, name, str(tmp_path / name)))
    context = StageContext(Store(str(tmp_path / "store")), in_process)
    workload = OffPrincipal(OffPrincipalSettings(), runs, tmp_path / "base")
    for _ in range(2):
        context.publish(workload)
        rows = pq.read_table(tmp_path / "store" / "tables" / "off_principal.parquet").to_pylist()
        scopes = {"module": 4, "layer": 4, "module type": 2, "global": 2}
        assert [row["scope"] for row in rows] == [scope for scope, n in scopes.items() for _ in range(n)]
        assert sum(row["entries"] for row in rows if row["scope"] == "global") == 2 * 2 * 32 * 32
