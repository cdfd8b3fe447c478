import json
from dataclasses import replace

import pyarrow.parquet as pq
from delta_cases import Q, gaussian, tiny_model

from raygeo.cluster.fanout import in_process
from raygeo.config import parse_study
from raygeo.geometry.weights.off_principal import OffPrincipal, OffPrincipalSettings
from raygeo.losses.sft import SFT
from raygeo.stages import geometry
from raygeo.stages.context import Context
from raygeo.store import Store
from raygeo.students.delta import save_full_delta
from raygeo.students.lora import LoraSettings
from raygeo.students.run import Run
from raygeo.training.settings import TrainingSettings


def condition(**training):
    return geometry._condition({"loss": SFT().model_dump(), "training": TrainingSettings(**training).model_dump()})


def test_seeds_are_apart_from_settings():
    one, other, faster = condition(), condition(seed=1), condition(lr=1e-3)
    assert one.configuration == other.configuration != faster.configuration
    assert one.seeds(other) == "order"
    assert one.seeds(condition(seed=0)) == "same"


def test_an_adapter_seed_counts_only_where_there_is_an_adapter():
    assert condition() == condition(init_seed=3)
    lora = LoraSettings(r=4, alpha=8)
    assert condition(lora=lora).seeds(condition(lora=lora, init_seed=3)) == "init"


def test_yardsticks_know_how_runs_were_trained_and_which_one_others_are_compared_with(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    store, rows, runs = Store(str(tmp_path / "store")), [], []
    for seed in (0, 1):
        training = TrainingSettings(seed=seed).model_dump()
        params = json.dumps({"loss": SFT().model_dump(), "training": training, "packages": {}})
        rows.append({"run": f"sft-s{seed}", "loss": "sft", "seed": seed, "params": params})
        save_full_delta(tmp_path / f"sft-s{seed}", {Q.format(0) + ".weight": gaussian(32, 32, seed=seed)})
        runs.append(Run(f"sft-s{seed}", f"sft-s{seed}", str(tmp_path / f"sft-s{seed}")))
    store.write_unit("k", {"runs": rows})
    store.publish("runs", ["k"])
    study = parse_study({"name": "s", "rollouts": {"sample": {}}, "runs": [{"loss": {"type": "sft"}}]})
    context = Context(store, in_process, study=study)
    material = geometry.Material(
        geometry=study.geometry, store=store, base=tmp_path / "base", runs=runs, reference="sft-s0", steps={},
        make_probes=dict, problems=[], grading="exact", actors=study.actors, training=geometry.Training({}, "", ""),
    )  # fmt: skip
    off = dict.fromkeys(type(study.geometry).model_fields)
    only = replace(material, geometry=study.geometry.model_copy(update=off | {"yardsticks": study.geometry.yardsticks}))
    store.write_unit("stale", {"sharpness": [{"run": "sft-s0", "measure": "sam", "radius": 0.05, "value": 1.0}]})
    store.publish("sharpness", ["stale"])
    geometry.analyse(context, only)
    assert store.table("sharpness").num_rows == 0, "an analysis that is no longer asked for is still shown"
    (row,) = store.table("yardsticks").to_pylist()
    assert (row["same_loss"], row["same_settings"], row["seeds"]) == (True, True, "order")
    (floor,) = store.table("floors").to_pylist()
    assert (floor["configuration_a"], floor["seeds"], floor["mean"]) == ("sft-s0", "order", row["cosine"])
    assert store.table("separations")["reason"][0].as_py().startswith("no loss has runs of two seeds")
    assert {r["run"] for r in store.table("maps").to_pylist() if r["x"] > 0 and r["y"] == 0} == {"sft-s0"}


def test_totals_stand_below_the_rows_of_modules(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    runs = []
    for index, name in enumerate("ab"):
        save_full_delta(
            tmp_path / name, {Q.format(i) + ".weight": 1e-3 * gaussian(32, 32, seed=index + i) for i in (0, 1)}
        )
        runs.append(Run(name, name, str(tmp_path / name)))
    study = parse_study({"name": "s", "rollouts": {"sample": {}}, "runs": [{"loss": {"type": "sft"}}]})
    context = Context(Store(str(tmp_path / "store")), in_process, study=study)
    workload = OffPrincipal(OffPrincipalSettings(), runs, tmp_path / "base")
    for _ in range(2):
        context.publish(workload)
        rows = pq.read_table(tmp_path / "store" / "tables" / "off_principal.parquet").to_pylist()
        assert [row["scope"] for row in rows] == ["module"] * 4 + ["layer"] * 4 + ["global"] * 2
        assert sum(row["entries"] for row in rows if row["scope"] == "global") == 2 * 2 * 32 * 32
