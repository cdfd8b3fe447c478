import math

import numpy as np
import pytest
import torch

from raygeo.analyses.drift.workload import Drift, DriftSettings
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import percentile_intervals, resampled_means
from raygeo.geometry.representation.drift import text_drift, token_drift
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.tables import to_arrow


def test_drift_by_hand():
    base = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    moved = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 0.0]])
    cosine, change = token_drift(moved, base)
    assert cosine[:3].tolist() == pytest.approx([1, 0, -1], abs=1e-15)
    assert change[:3].tolist() == pytest.approx([0, math.sqrt(5), 1.5], abs=1e-15)
    assert not bool(torch.isfinite(cosine[3])), "a zero state has no direction"


def test_sums_are_over_the_tokens_that_the_mask_names():
    base, moved = torch.ones(2, 4, 3), torch.ones(2, 4, 3)
    moved[:, 2], moved[:, 0] = 3.0, 100.0
    mask = torch.tensor([[False, True, True], [False, False, True]])
    sums = text_drift([base, moved], [base, base], mask)
    np.testing.assert_allclose(sums, [[[2, 0], [2, 2]], [[1, 0], [1, 0]]], rtol=1e-12)


def test_drift_equals_a_pass_over_each_text_alone(student, probe, probe_file, runs, merged):
    workload = Drift(DriftSettings(batch_size=7, bootstrap=300, seed=4), runs, student[1], probe_file)
    tasks = workload.tasks()
    assert [task.payload.name for task in tasks] == ["r1", "r2"]
    state = workload.setup()
    before = {name: value.detach().clone() for name, value in state.weights.model.named_parameters()}
    rows = workload.compute(state, tasks[1].payload)["drift"]
    assert to_arrow("drift", rows, Drift.tables["drift"]).num_rows == 3
    assert all(torch.equal(value, before[name]) for name, value in state.weights.model.named_parameters())

    sums = np.zeros((24, 3, 2))
    for text, s in enumerate(probe.sequences):
        states = []
        for name in ("r2", "base"):
            with torch.no_grad():
                states.append(merged[name](torch.from_numpy(s.ids)[None], output_hidden_states=True).hidden_states)
        for layer, (h, b) in enumerate(zip(*states, strict=True)):
            h, b = h[0, s.prompt_length :].double(), b[0, s.prompt_length :].double()
            sums[text, layer, 0] = torch.cosine_similarity(h, b, dim=-1).sum()
            sums[text, layer, 1] = ((h - b).norm(dim=-1) / b.norm(dim=-1)).sum()
    means = sums.sum(0) / probe.tokens
    for row in rows:
        layer = row["layer"]
        assert (row["run"], row["n"], row["tokens"]) == ("r2", 24, probe.tokens)
        assert [row["cosine"], row["change"]] == pytest.approx(means[layer], abs=1e-5)
    assert (rows[0]["cosine"], rows[0]["change"]) == (pytest.approx(1, abs=1e-12), 0), "embeddings did not move"
    assert rows[2]["cosine"] < 0.98
    # Texts are drawn in the order of the batches, by length; ties keep the probe's order.
    order = np.argsort([len(s) for s in probe.sequences], kind="stable")
    tokens = np.array([s.completion_length for s in probe.sequences], dtype=float)[order]
    expected = percentile_intervals(resampled_means(sums[order][:, 2], tokens, resamples=300, seed=4), 24)
    assert [rows[2]["cosine_low"], rows[2]["cosine_high"]] == pytest.approx(list(expected[0]), abs=1e-5)
    assert [rows[2]["change_low"], rows[2]["change_high"]] == pytest.approx(list(expected[1]), abs=1e-5)


def test_a_run_equal_to_the_base_does_not_drift(student, probe_file, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    save_full_delta(tmp_path / "zero", {name: torch.zeros(64, 32)})
    workload = Drift(DriftSettings(), [Run("zero", "k", str(tmp_path / "zero"))], student[1], probe_file)
    for row in workload.compute(workload.setup(), workload.tasks()[0].payload)["drift"]:
        assert row["change"] == row["change_high"] == 0
        assert row["cosine"] == pytest.approx(1, abs=1e-12)


def test_a_diverged_run_is_refused(student, probe_file, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    save_full_delta(tmp_path / "bad", {name: torch.full((64, 32), math.inf)})
    workload = Drift(DriftSettings(), [Run("bad", "k", str(tmp_path / "bad"))], student[1], probe_file)
    with pytest.raises(DeltaError, match="bad"):
        workload.compute(workload.setup(), workload.tasks()[0].payload)
