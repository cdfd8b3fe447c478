import itertools

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from delta_cases import Q, V, all_rows, full_run, gaussian, lora_run, low_rank, moments_of

from raygeo.analyses.cosine_baselines.workload import CosineBaselines, CosineBaselineSettings
from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.cluster.execution import run_workload
from raygeo.errors import DataError
from raygeo.geometry.weights import grouping
from raygeo.geometry.weights.grouping import open_all
from raygeo.geometry.weights.moments import whole_moments
from raygeo.models.delta import LowRank
from raygeo.models.run import Run
from raygeo.records import Condition
from raygeo.tables import BASE

Q0, V1 = Q.format(0) + ".weight", V.format(1) + ".weight"


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def baselines(runs, base, conditions, reference):
    return CosineBaselines(CosineBaselineSettings(), runs, moments_of(runs, base), conditions, reference)


@pytest.fixture(scope="module")
def study(tmp_path_factory, base):
    """Two losses of two LoRA seeds each, one of another rate, and a full delta; their conditions and dense vectors."""
    folder = tmp_path_factory.mktemp("deltas")
    shared = low_rank(32, 32, 4, seed=0)
    runs, conditions = [], {}
    cases = [("sft", "low", 0), ("sft", "low", 1), ("dpo", "low", 0), ("dpo", "low", 1), ("sft", "high", 0)]
    for index, (loss, rate, seed) in enumerate(cases):
        noise = low_rank(32, 32, 4, seed=10 + index)
        q = LowRank(shared.b + 0.5 * noise.b, shared.a, 2.0)
        entries = {Q.format(0): q, V.format(1): low_rank(16, 32, 4, seed=20 + index)}
        name = f"{loss}-{rate}-{seed}"
        runs.append(lora_run(folder, name, entries))
        conditions[name] = Condition(loss, rate, seed, 0)
    runs.append(full_run(folder, "full", {Q0: 3 * gaussian(32, 32, seed=30)}))
    conditions["full"] = Condition("sft", "full", 0, None)
    vectors = {}
    for run in runs:
        delta = run.open()
        parts = [delta[n].dense(torch.float64).flatten() if n in delta else torch.zeros(512) for n in (Q0, V1)]
        vectors[run.name] = torch.cat(parts).numpy()
    return [Run(BASE, BASE, None), *runs], conditions, vectors


@pytest.fixture(scope="module")
def rows(study, base):
    runs, conditions, _ = study
    found = all_rows(baselines(runs, base, conditions, "dpo-low-1"))
    assert all(found.values())
    return found


def test_pairs_equal_dense_fp64(study, base, rows):
    runs, conditions, vectors = study
    similar = all_rows(Similarity(SimilaritySettings(), runs, base))["similarity"]
    known = {(r["run_a"], r["run_b"]): r for r in similar if r["scope"] == "global"}
    sft = [name for name in vectors if not name.startswith("dpo")]
    dpo = [name for name in vectors if name.startswith("dpo")]
    units = {name: x / np.linalg.norm(x) for name, x in vectors.items()}

    def mean(deltas):
        return (np.mean([deltas[n] for n in sft], axis=0) + np.mean([deltas[n] for n in dpo], axis=0)) / 2

    centre, matched_centre = mean(vectors), mean(units)
    orthogonal = {name: np.linalg.norm(x) * np.eye(6)[i] for i, (name, x) in enumerate(vectors.items())}
    frame = {name: np.eye(6)[i] for i, name in enumerate(vectors)}
    assert len(rows["cosine_baselines"]) == 15
    for row in rows["cosine_baselines"]:
        a, b = row["run_a"], row["run_b"]
        x, y = vectors[a], vectors[b]
        expected = {
            "cosine": cosine(x, y),
            "null_sd": known[a, b]["null_sd"],
            "z": cosine(x, y) / known[a, b]["null_sd"],
            "centred_cosine": cosine(x - centre, y - centre),
            "centred_null": cosine(orthogonal[a] - mean(orthogonal), orthogonal[b] - mean(orthogonal)),
            "matched_centred_cosine": cosine(units[a] - matched_centre, units[b] - matched_centre),
            "matched_centred_null": cosine(frame[a] - mean(frame), frame[b] - mean(frame)),
            "distance": np.linalg.norm(x - y),
            "matched_distance": (np.linalg.norm(x) * np.linalg.norm(y)) ** 0.5 * np.linalg.norm(units[a] - units[b]),
        }
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, rel=1e-10, abs=1e-12), (a, b, column)
        assert row["same_loss"] == (conditions[a].loss == conditions[b].loss)
        assert row["same_settings"] == (conditions[a].settings == conditions[b].settings)


def test_pairs_are_disattenuated_by_their_own_kind_of_seeds(rows):
    pairs = {(r["run_a"], r["run_b"]): r for r in rows["cosine_baselines"]}
    across = pairs["sft-low-0", "dpo-low-1"]
    reliabilities = [pairs[f"{loss}-low-0", f"{loss}-low-1"]["cosine"] for loss in ("sft", "dpo")]
    assert across["disattenuated"] == pytest.approx(across["cosine"] / np.sqrt(np.prod(reliabilities)), rel=1e-12)
    others = {pair for pair, row in pairs.items() if row["disattenuated"] is not None}
    assert others == {("sft-low-0", "dpo-low-1"), ("sft-low-1", "dpo-low-0")}
    between = {(r["configuration_a"], r["configuration_b"], r["seeds"]): r for r in rows["noise_floors"]}
    mean = between["sft-low-0", "dpo-low-0", "order"]["mean"]
    assert between["sft-low-0", "dpo-low-0", "order"]["disattenuated"] == pytest.approx(
        mean / np.sqrt(np.prod(reliabilities)), rel=1e-12
    )


def test_spans_are_of_the_other_runs_of_a_configuration(study, rows):
    _, _, vectors = study
    spans = {(r["configuration"], r["run"]): r for r in rows["span_residuals"]}
    assert {configuration for configuration, _ in spans} == {"sft-low-0", "dpo-low-0"}
    assert len(spans) == 12
    pair = np.stack([vectors["dpo-low-0"], vectors["dpo-low-1"]]).T
    target = vectors["sft-high-0"]
    left = target - pair @ np.linalg.lstsq(pair, target)[0]
    row = spans["dpo-low-0", "sft-high-0"]
    assert row["orthogonal_fraction"] == pytest.approx(np.linalg.norm(left) / np.linalg.norm(target), abs=1e-10)
    assert (row["n"], row["dimension"], row["among"]) == (2, 2, False)
    own = spans["dpo-low-0", "dpo-low-1"]
    alone = cosine(vectors["dpo-low-0"], vectors["dpo-low-1"])
    assert own["orthogonal_fraction"] == pytest.approx(np.sqrt(1 - alone**2), abs=1e-10)
    assert (own["n"], own["dimension"], own["among"]) == (1, 1, True)
    sds = [
        next(r["null_sd"] for r in rows["cosine_baselines"] if {r["run_a"], r["run_b"]} == {"dpo-low-1", name})
        for name in ("sft-low-0", "sft-low-1")
    ]
    chance = spans["sft-low-0", "dpo-low-1"]["null_fraction"]
    assert chance == pytest.approx(np.sqrt(1 - 2 * np.mean(np.square(sds))), rel=1e-12)


def test_random_full_deltas_leave_of_a_span_what_chance_says(tmp_path, base):
    """The null of a span of three, over draws; a random direction in R^512 keeps sqrt(1 - 3 / 512) on average."""
    runs, conditions = [], {}
    for index in range(43):
        name = f"r{index}"
        runs.append(full_run(tmp_path, name, {V1: gaussian(16, 32, seed=index)}))
        conditions[name] = Condition("a" if index < 3 else f"b{index}", "", index, None)
    workload = baselines(runs, base, conditions, "r0")
    found = workload.compute(workload.setup(), None)["span_residuals"]
    outside = [row for row in found if not row["among"]]
    np.testing.assert_allclose([row["null_fraction"] for row in outside], (1 - 3 / 512) ** 0.5, rtol=1e-12)
    energy = np.square([row["orthogonal_fraction"] for row in outside])
    assert energy.mean() == pytest.approx(1 - 3 / 512, abs=4 * energy.std() / len(energy) ** 0.5)


def test_separations_are_of_all_settings_unless_several_can_be_tested(rows):
    (row,) = rows["permutation_tests"]
    assert (row["like"], row["runs"], row["within_n"], row["between_n"]) == ("", 4, 2, 2)
    assert row["p"] is None
    assert "labelings" in row["reason"]


def test_each_setting_has_its_own_test_where_several_have_seeds(tmp_path, base):
    runs, conditions = [], {}
    for index, (rate, loss, seed) in enumerate(itertools.product(("low", "high"), "ab", (0, 1))):
        name = f"{loss}-{rate}-{seed}"
        runs.append(full_run(tmp_path, name, {V1: gaussian(16, 32, seed=index)}))
        conditions[name] = Condition(loss, rate, seed, None)
    workload = baselines(runs, base, conditions, "a-low-0")
    found = workload.compute(workload.setup(), None)["permutation_tests"]
    assert [(row["like"], row["runs"]) for row in found] == [("", 8), ("a-low-0", 4), ("a-high-0", 4)]


def test_maps_hold_the_base_and_have_the_reference_on_the_right(study, rows):
    _, _, vectors = study
    for scaling in ("raw", "matched"):
        place = {row["run"]: np.array([row["x"], row["y"]]) for row in rows["mds"] if row["scaling"] == scaling}
        assert list(place) == [BASE, *vectors]
        np.testing.assert_array_equal(place[BASE], 0)
        assert place["dpo-low-1"][0] > 0
        assert place["dpo-low-1"][1] == 0
        axes = [row for row in rows["mds_axes"] if row["scaling"] == scaling]
        assert [row["axis"] for row in axes] == list(range(1, 7))
        assert sum(row["share"] for row in axes) == pytest.approx(1)
        x = np.stack([np.zeros(1536), *vectors.values()])
        if scaling == "matched":
            x[1:] /= np.linalg.norm(x[1:], axis=1, keepdims=True)
        spread = np.linalg.svd(x - x.mean(0), compute_uv=False)[:6] ** 2
        np.testing.assert_allclose([row["eigenvalue"] for row in axes], spread, rtol=1e-10)
        assert axes[-1]["stress"] == pytest.approx(0, abs=1e-7)


def test_a_run_that_did_not_move_has_no_direction(tmp_path, base):
    runs, conditions = [], {}
    for index, name in enumerate(("a", "b", "still")):
        runs.append(full_run(tmp_path, name, {V1: gaussian(16, 32, seed=index) * (name != "still")}))
        conditions[name] = Condition(name, "", 0, None)
    workload = baselines(runs, base, conditions, "still")
    found = workload.compute(workload.setup(), None)
    pairs = {(r["run_a"], r["run_b"]): r for r in found["cosine_baselines"]}
    row = pairs["a", "still"]
    assert row["cosine"] is row["z"] is row["matched_distance"] is row["disattenuated"] is None
    assert row["distance"] > 0
    assert {(r["scaling"], r["run"]) for r in found["mds"]} == {
        ("raw", BASE), ("raw", "a"), ("raw", "b"), ("raw", "still"),
        ("matched", BASE), ("matched", "a"), ("matched", "b"),
    }  # fmt: skip


def test_one_task_whose_key_holds_all_that_rows_depend_on(study, base):
    runs, conditions, _ = study
    known = moments_of(runs, base)
    moved = known.set_column(known.schema.get_field_index("inner"), "inner", pc.multiply(known["inner"], 1 + 2.0**-52))

    def key(runs=runs, moments=known, conditions=conditions, reference="full", **settings):
        (task,) = CosineBaselines(CosineBaselineSettings(**settings), runs, moments, conditions, reference).tasks()
        return task.key

    other = conditions | {"full": Condition("dpo", "full", 0, None)}
    assert key() == key(runs=runs[1:])
    keys = [key(), key(runs=runs[:-1]), key(conditions=other), key(reference="x"), key(seed=1), key(permutations=100)]
    assert len({*keys, key(moments=moved)}) == 7
    nothing = Similarity.tables["moments"].empty_table()
    assert CosineBaselines(CosineBaselineSettings(), runs[:2], nothing, conditions, "full").tasks() == []


def test_runs_whose_moments_are_missing_are_refused(study, base):
    runs, conditions, _ = study
    known = moments_of(runs[:-1], base)
    with pytest.raises(DataError, match=r"nothing of full, so .* geometry\.similarity"):
        CosineBaselines(CosineBaselineSettings(), runs, known, conditions, "full")


@pytest.mark.parametrize(("size", "tasks"), [(1, 5), (1 << 27, 1)])
def test_added_moments_are_those_of_the_deltas_to_the_last_bit(tmp_path, base, store, monkeypatch, size, tasks):
    """By way of the table that similarity publishes, whose tasks share the parameters in one way or another."""
    shapes = {name.format(i) + ".weight": (out, 32) for name, out in ((Q, 32), (V, 16)) for i in (0, 1)}
    shapes |= {"model.norm.weight": (32,)}
    runs = []
    for index, name in enumerate(("a", "b", "c")):
        tensors = {n: 10.0**-i * gaussian(*s, seed=10 * index + i) for i, (n, s) in enumerate(shapes.items())}
        runs.append(full_run(tmp_path, name, tensors))
    entries = {Q.format(1): low_rank(32, 32, 4, seed=50), V.format(1): low_rank(16, 32, 4, seed=51)}
    runs.append(lora_run(tmp_path, "lora", entries))
    conditions = {run.name: Condition("sft" if run.name < "c" else "dpo", "", i, None) for i, run in enumerate(runs)}
    exact = whole_moments(open_all(runs))
    monkeypatch.setattr(grouping, "GROUP_SIZE", size)
    similarity = Similarity(SimilaritySettings(), runs, base)
    keys = run_workload(similarity, store).keys
    assert len(keys) == tasks
    moments = store.publish("moments", keys, similarity.tables["moments"])
    workload = CosineBaselines(CosineBaselineSettings(), runs, moments, conditions, "a")
    for name, value in vars(exact).items():
        np.testing.assert_array_equal(getattr(workload.whole, name), value)
    found = all_rows(workload)
    workload.whole = exact
    assert found == all_rows(workload)
