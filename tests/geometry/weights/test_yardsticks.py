import itertools
import pickle

import numpy as np
import pytest
import torch
from delta_cases import Q, V, all_rows, gaussian, low_rank, save_lora, tiny_model

from raygeo.errors import DeltaError
from raygeo.geometry.weights.conditions import Condition
from raygeo.geometry.weights.similarity import Similarity, SimilaritySettings
from raygeo.geometry.weights.yardsticks import (
    Yardsticks,
    YardstickSettings,
    balanced,
    beyond_span,
    centred,
    disattenuate,
    distances,
    floors,
    matched_distances,
    unit,
)
from raygeo.students.delta import LowRank, save_full_delta
from raygeo.students.run import Run
from raygeo.tables import BASE, to_arrow

Q0, V1 = Q.format(0) + ".weight", V.format(1) + ".weight"


def points(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def test_centring_is_that_of_the_vectors():
    x = points(5, 40)
    weights = balanced(["sft", "dpo", "sft", "sft", "rft"])
    np.testing.assert_allclose(weights, [1 / 9, 1 / 3, 1 / 9, 1 / 9, 1 / 3])
    mean = (x[[0, 2, 3]].mean(0) + x[1] + x[4]) / 3
    np.testing.assert_allclose(centred(x @ x.T, weights), (x - mean) @ (x - mean).T, rtol=0, atol=1e-12)


def test_a_delta_equal_to_the_mean_has_no_centred_direction():
    x = points(2, 40)
    x = np.stack([x[0], x[1], (x[0] + x[1]) / 2])
    found = unit(centred(x @ x.T, np.full(3, 1 / 3)))
    assert np.isnan(found[2]).all()
    assert found[0, 1] == pytest.approx(-1, abs=1e-12)


def test_distances_split_into_length_and_direction():
    x = np.concatenate([points(3, 20), [4.0 * points(1, 20)[0], -points(1, 20)[0]]])
    raw, matched, norms = distances(x @ x.T), matched_distances(x @ x.T), np.linalg.norm(x, axis=1)
    for i, j in itertools.combinations(range(5), 2):
        assert raw[i, j] == pytest.approx(np.linalg.norm(x[i] - x[j]), abs=1e-12)
        size = (norms[i] * norms[j]) ** 0.5
        equal = np.linalg.norm(size * x[i] / norms[i] - size * x[j] / norms[j])
        assert matched[i, j] == pytest.approx(equal, abs=1e-6)
        assert raw[i, j] ** 2 == pytest.approx((norms[i] - norms[j]) ** 2 + matched[i, j] ** 2, rel=1e-12)
    assert matched[0, 3] == pytest.approx(0, abs=1e-6)
    assert matched[0, 4] == pytest.approx(2 * norms[0])


def test_what_is_beyond_a_span_is_the_residual_of_least_squares():
    x = points(6, 30)
    x[3] *= 100
    cosines = unit(x @ x.T)
    for span, run in (([0], 1), ([0, 1, 3], 4), ([1, 2, 3, 4, 5], 0)):
        solution, *_ = np.linalg.lstsq(x[span].T, x[run])
        expected = np.linalg.norm(x[run] - x[span].T @ solution) / np.linalg.norm(x[run])
        found, dimension = beyond_span(cosines, span, run)
        assert found == pytest.approx(expected, abs=1e-12)
        assert dimension == len(span)


def test_a_span_counts_directions_once_and_holds_what_lies_in_it():
    x = points(3, 30)
    x = np.stack([x[0], 3 * x[0], -x[0], x[1], x[0] + 2 * x[1], x[2]])
    cosines = unit(x @ x.T)
    assert beyond_span(cosines, [0, 1, 2], 3)[1] == 1
    inside, dimension = beyond_span(cosines, [0, 1, 2, 3], 4)
    assert (inside, dimension) == (pytest.approx(0, abs=1e-6), 2)
    assert beyond_span(cosines, [0, 1], 5)[0] == pytest.approx(np.sqrt(1 - cosine(x[0], x[5]) ** 2), abs=1e-12)


def seeded(losses, seeds, inits=(0,), settings=""):
    return [Condition(loss, settings, seed, init) for loss in losses for seed in seeds for init in inits]


def test_floors_keep_orders_and_initialisations_apart():
    conditions = [*seeded("a", (0, 1), (0, 1)), *seeded("b", (0,)), *seeded("a", (0,), settings="other")]
    cosines = np.arange(36.0).reshape(6, 6) / 100
    cosines = np.triu(cosines, 1) + np.triu(cosines, 1).T
    rows = {(r["configuration_a"], r["configuration_b"], r["seeds"]): r for r in floors(cosines, conditions)}
    pairs = {"order": [(0, 2), (1, 3)], "init": [(0, 1), (2, 3)], "both": [(0, 3), (1, 2)]}
    for kind, members in pairs.items():
        values, row = [cosines[pair] for pair in members], rows[0, 0, kind]
        assert (row["n"], row["low"], row["high"]) == (2, min(values), max(values))
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["disattenuated"] is None
    assert {key: row["n"] for key, row in rows.items() if key[0] != key[1]} == {
        (a, b, kind): 1
        for a, b in ((0, 4), (0, 5), (4, 5))
        for kind in (("same", "order", "init", "both") if a == 0 else ("same",))
    }


def test_disattenuation_finds_the_cosine_below_the_noise():
    """Losses along directions of cosine 0.6; a third of the energy of a, two thirds of that of b come of the order."""
    rng, d, seeds = np.random.default_rng(0), 20_000, range(6)
    signal = np.linalg.qr(rng.standard_normal((d, 2))).Q.T
    directions = {"a": signal[0], "b": 0.6 * signal[0] + 0.8 * signal[1]}
    share = {"a": 2 / 3, "b": 1 / 3}
    conditions = seeded("ab", seeds)
    shared = rng.standard_normal((6, d)) / d**0.5
    x = np.stack(
        [share[c.loss] ** 0.5 * directions[c.loss] + (1 - share[c.loss]) ** 0.5 * shared[c.seed] for c in conditions]
    )
    rows = {(r["configuration_a"], r["configuration_b"], r["seeds"]): r for r in floors(unit(x @ x.T), conditions)}
    assert rows[0, 0, "order"]["mean"] == pytest.approx(2 / 3, abs=0.01)
    assert rows[6, 6, "order"]["mean"] == pytest.approx(1 / 3, abs=0.01)
    assert rows[0, 6, "order"]["mean"] == pytest.approx(0.6 * (2 / 9) ** 0.5, abs=0.01)
    assert rows[0, 6, "order"]["disattenuated"] == pytest.approx(0.6, abs=0.015)
    assert rows[0, 6, "same"]["mean"] > 0.7
    assert rows[0, 6, "same"]["disattenuated"] is None


def test_disattenuated_is_never_clipped_nor_made_of_noise():
    assert disattenuate(0.5, 0.4, 0.4) == pytest.approx(1.25)
    assert disattenuate(0.5, -0.1, 0.4) is disattenuate(0.5, None, 0.4) is disattenuate(0.5, 0.4, 0.0) is None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return folder


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
        runs.append(Run(name, name, str(save_lora(folder / name, entries))))
        conditions[name] = Condition(loss, rate, seed, 0)
    save_full_delta(folder / "full", {Q0: 3 * gaussian(32, 32, seed=30)})
    runs.append(Run("full", "full", str(folder / "full")))
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
    workload = pickle.loads(pickle.dumps(Yardsticks(YardstickSettings(), runs, base, conditions, "dpo-low-1")))
    (task,) = workload.tasks()
    found = workload.compute(workload.setup(), task.payload)
    assert set(found) == set(workload.tables)
    for table, content in found.items():
        assert to_arrow(table, content).num_rows
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
    assert len(rows["yardsticks"]) == 15
    for row in rows["yardsticks"]:
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
    pairs = {(r["run_a"], r["run_b"]): r for r in rows["yardsticks"]}
    across = pairs["sft-low-0", "dpo-low-1"]
    reliabilities = [pairs[f"{loss}-low-0", f"{loss}-low-1"]["cosine"] for loss in ("sft", "dpo")]
    assert across["disattenuated"] == pytest.approx(across["cosine"] / np.sqrt(np.prod(reliabilities)), rel=1e-12)
    others = {pair for pair, row in pairs.items() if row["disattenuated"] is not None}
    assert others == {("sft-low-0", "dpo-low-1"), ("sft-low-1", "dpo-low-0")}
    between = {(r["configuration_a"], r["configuration_b"], r["seeds"]): r for r in rows["floors"]}
    mean = between["sft-low-0", "dpo-low-0", "order"]["mean"]
    assert between["sft-low-0", "dpo-low-0", "order"]["disattenuated"] == pytest.approx(
        mean / np.sqrt(np.prod(reliabilities)), rel=1e-12
    )


def test_spans_are_of_the_other_runs_of_a_configuration(study, rows):
    _, _, vectors = study
    spans = {(r["configuration"], r["run"]): r for r in rows["spans"]}
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
        next(r["null_sd"] for r in rows["yardsticks"] if {r["run_a"], r["run_b"]} == {"dpo-low-1", name})
        for name in ("sft-low-0", "sft-low-1")
    ]
    chance = spans["sft-low-0", "dpo-low-1"]["null_fraction"]
    assert chance == pytest.approx(np.sqrt(1 - 2 * np.mean(np.square(sds))), rel=1e-12)


def test_random_full_deltas_leave_of_a_span_what_chance_says(tmp_path, base):
    """The null of a span of three, over draws; a random direction in R^512 keeps sqrt(1 - 3 / 512) on average."""
    runs, conditions = [], {}
    for index in range(43):
        name = f"r{index}"
        save_full_delta(tmp_path / name, {V1: gaussian(16, 32, seed=index)})
        runs.append(Run(name, name, str(tmp_path / name)))
        conditions[name] = Condition("a" if index < 3 else f"b{index}", "", index, None)
    workload = Yardsticks(YardstickSettings(), runs, base, conditions, "r0")
    found = workload.compute(workload.setup(), None)["spans"]
    outside = [row for row in found if not row["among"]]
    np.testing.assert_allclose([row["null_fraction"] for row in outside], (1 - 3 / 512) ** 0.5, rtol=1e-12)
    energy = np.square([row["orthogonal_fraction"] for row in outside])
    assert energy.mean() == pytest.approx(1 - 3 / 512, abs=4 * energy.std() / len(energy) ** 0.5)


def test_separations_are_of_all_settings_unless_several_can_be_tested(rows):
    (row,) = rows["separations"]
    assert (row["like"], row["runs"], row["within_n"], row["between_n"]) == ("", 4, 2, 2)
    assert row["p"] is None
    assert "labelings" in row["reason"]


def test_each_setting_has_its_own_test_where_several_have_seeds(tmp_path, base):
    runs, conditions = [], {}
    for index, (rate, loss, seed) in enumerate(itertools.product(("low", "high"), "ab", (0, 1))):
        name = f"{loss}-{rate}-{seed}"
        save_full_delta(tmp_path / name, {V1: gaussian(16, 32, seed=index)})
        runs.append(Run(name, name, str(tmp_path / name)))
        conditions[name] = Condition(loss, rate, seed, None)
    workload = Yardsticks(YardstickSettings(), runs, base, conditions, "a-low-0")
    found = workload.compute(workload.setup(), None)["separations"]
    assert [(row["like"], row["runs"]) for row in found] == [("", 8), ("a-low-0", 4), ("a-high-0", 4)]


def test_maps_hold_the_base_and_have_the_reference_on_the_right(study, rows):
    _, _, vectors = study
    for scaling in ("raw", "matched"):
        place = {row["run"]: np.array([row["x"], row["y"]]) for row in rows["maps"] if row["scaling"] == scaling}
        assert list(place) == [BASE, *vectors]
        np.testing.assert_array_equal(place[BASE], 0)
        assert place["dpo-low-1"][0] > 0
        assert place["dpo-low-1"][1] == 0
        axes = [row for row in rows["map_axes"] if row["scaling"] == scaling]
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
        save_full_delta(tmp_path / name, {V1: gaussian(16, 32, seed=index) * (name != "still")})
        runs.append(Run(name, name, str(tmp_path / name)))
        conditions[name] = Condition(name, "", 0, None)
    workload = Yardsticks(YardstickSettings(), runs, base, conditions, "still")
    found = workload.compute(workload.setup(), None)
    pairs = {(r["run_a"], r["run_b"]): r for r in found["yardsticks"]}
    row = pairs["a", "still"]
    assert row["cosine"] is row["z"] is row["matched_distance"] is row["disattenuated"] is None
    assert row["distance"] > 0
    assert {(r["scaling"], r["run"]) for r in found["maps"]} == {
        ("raw", BASE), ("raw", "a"), ("raw", "b"), ("raw", "still"),
        ("matched", BASE), ("matched", "a"), ("matched", "b"),
    }  # fmt: skip


def test_one_task_whose_key_holds_all_that_rows_depend_on(study, base):
    runs, conditions, _ = study

    def key(runs=runs, conditions=conditions, reference="full", **settings):
        (task,) = Yardsticks(YardstickSettings(**settings), runs, base, conditions, reference).tasks()
        return task.key

    other = conditions | {"full": Condition("dpo", "full", 0, None)}
    assert key() == key(runs=runs[1:])
    keys = {key(), key(runs=runs[:-1]), key(conditions=other), key(reference="x"), key(seed=1), key(permutations=100)}
    assert len(keys) == 6
    assert Yardsticks(YardstickSettings(), runs[:2], base, conditions, "full").tasks() == []


def test_deltas_of_another_base_are_refused(tmp_path, base):
    for name in "ab":
        save_full_delta(tmp_path / name, {Q0: torch.ones(8, 4)})
    runs = [Run(name, name, str(tmp_path / name)) for name in "ab"]
    workload = Yardsticks(YardstickSettings(), runs, base, dict.fromkeys("ab", Condition("", "", 0, None)), "a")
    with pytest.raises(DeltaError, match=r"shape \(8, 4\)"):
        workload.compute(workload.setup(), None)
