import pytest

from raygeo.analyses.layer_cka.workload import LayerCKA, LayerCKASettings, spaced_layers
from raygeo.geometry.representation.cka import align
from raygeo.tables import to_arrow


def test_layers_are_spaced_evenly_between_the_first_and_the_last():
    assert spaced_layers(5, 9) == [0, 1, 2, 3, 4]
    assert spaced_layers(37, 9) == [0, 4, 9, 14, 18, 22, 27, 32, 36]
    assert spaced_layers(37, 2) == [0, 36]


def test_all_layers_are_aligned_with_the_base_and_the_reference(student, probe_file, runs):
    settings = LayerCKASettings(batch_size=6, treatment="rms_normed")
    workload = LayerCKA(settings, runs, student[1], probe_file, "r2")
    tasks = workload.tasks()
    pairs = [(a.name, b.name) for a, b in (task.payload for task in tasks)]
    assert pairs == [("base", "base"), ("base", "r1"), ("base", "r2"), ("r2", "r1")]
    assert len({task.key for task in tasks}) == 4
    state = workload.setup()
    rows = {pair: workload.compute(state, task.payload)["layer_cka"] for pair, task in zip(pairs, tasks, strict=True)}
    assert sum(to_arrow("layer_cka", found, LayerCKA.tables["layer_cka"]).num_rows for found in rows.values()) == 4 * 9
    first, second = (state.kernels(run).treated("rms_normed") for run in (runs[2], runs[1]))
    for row in rows["r2", "r1"]:
        [expected] = align(first[[row["layer_a"]]], second[[row["layer_b"]]], state.batches)
        found = [row["cka"], row["low"], row["high"]]
        assert found == pytest.approx([expected.cka, expected.low, expected.high], abs=1e-12)
    own = {(row["layer_a"], row["layer_b"]): row["cka"] for row in rows["base", "base"]}
    assert all(own[layer, layer] == pytest.approx(1, abs=1e-12) for layer in range(3))
    assert own[0, 2] == pytest.approx(own[2, 0], abs=1e-12)
    assert own[0, 2] < 0.9
