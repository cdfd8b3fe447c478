import math
from functools import partial

import delta_cases
import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from raygeo.analyses.outputs.workload import Outputs, OutputSettings
from raygeo.errors import DeltaError
from raygeo.geometry.calibration import binned_gaps
from raygeo.geometry.representation import predictions as predictions_of
from raygeo.geometry.representation.predictions import kl_divergence
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.tables import to_arrow

gaussian = partial(delta_cases.gaussian, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_divergence_in_fp64_is_that_of_torch(scale):
    p, q = scale * gaussian(2, 50, 30, seed=0)
    found = kl_divergence(p.log_softmax(-1), q.log_softmax(-1))
    torch.testing.assert_close(found, torch_kl(Categorical(logits=p), Categorical(logits=q)), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 1.0])
def test_small_divergences_survive_fp32(size):
    p = 4 * gaussian(40, 2000, seed=1)
    q = p + size * gaussian(40, 2000, seed=2)
    exact = torch_kl(Categorical(logits=p), Categorical(logits=q)).mean()
    narrow = [x.float().log_softmax(-1) for x in (p.float().double(), q.float().double())]
    found = kl_divergence(*narrow)
    assert bool((found >= 0).all())
    assert float(found.mean()) == pytest.approx(float(exact), rel=1e-2 if size == 1e-4 else 1e-3)


def test_divergence_of_certain_predictions_is_finite():
    p = torch.tensor([[0.0, -400.0]]).log_softmax(-1)
    found = kl_divergence(p, p.flip(-1))
    assert found.tolist() == pytest.approx([400.0], rel=1e-6)
    assert kl_divergence(p, p).tolist() == [0]


def test_calibration_error_by_hand():
    probabilities = torch.tensor([[0.95, 0.85, 0.85, 0.15, 1.0, 0.0]], dtype=torch.float64)
    correct = torch.tensor([[1, 0, 1, 0, 1, 0]], dtype=torch.float64)
    gaps = binned_gaps(probabilities, correct, 10)
    assert gaps.shape == (1, 10)
    expected = torch.zeros(1, 10, dtype=torch.float64)
    expected[0, 1], expected[0, 8], expected[0, 9] = 0.15, 1.7 - 1, 1.95 - 2
    torch.testing.assert_close(gaps, expected, rtol=1e-12, atol=1e-12)


def predictions(model, probe) -> list[torch.Tensor]:
    """Log-probabilities [tokens, V] fp64 for the completion of each text."""
    with torch.no_grad():
        return [
            model(torch.from_numpy(s.ids)[None]).logits[0, s.prompt_length - 1 : -1].double().log_softmax(-1)
            for s in probe.sequences
        ]


@pytest.fixture(scope="module")
def settings():
    return OutputSettings(pairs="all", bins=5, bootstrap=200, batch_size=7)


def test_outputs_equal_those_of_each_text_alone(student, probe, probe_file, runs, merged, settings, monkeypatch):
    monkeypatch.setattr(predictions_of, "CHUNK_LOGITS", 100)  # five tokens at a time
    workload = Outputs(settings, runs, student[1], probe_file, "r2")
    tasks = workload.tasks()
    assert [[run.name for run in task.payload] for task in tasks] == [
        ["base", "r2"], ["base", "r1"], ["r2", "r1"], ["base"], ["r2"], ["r1"],
    ]  # fmt: skip
    assert len({task.key for task in tasks}) == 6
    state = workload.setup()
    found = [workload.compute(state, task.payload) for task in tasks]
    divergences = [row for part in found for row in part.get("divergences", [])]
    own = [row for part in found for row in part.get("outputs", [])]
    compared = to_arrow("divergences", divergences, Outputs.tables["divergences"])
    assert (compared.num_rows, to_arrow("outputs", own, Outputs.tables["outputs"]).num_rows) == (9, 12)
    assert {(row["n"], row["tokens"]) for row in divergences + own} == {(24, probe.tokens)}

    logs = {name: torch.cat(predictions(model, probe)) for name, model in merged.items()}
    targets = torch.cat([torch.from_numpy(s.ids[s.prompt_length :]) for s in probe.sequences])
    values = {(row["run_a"], row["run_b"], row["quantity"]): row for row in divergences}
    for a, b in (("base", "r2"), ("base", "r1"), ("r2", "r1")):
        p, q = (Categorical(logits=logs[name]) for name in (a, b))
        assert values[a, b, "kl_ab"]["value"] == pytest.approx(float(torch_kl(p, q).mean()), rel=1e-4)
        assert values[a, b, "kl_ba"]["value"] == pytest.approx(float(torch_kl(q, p).mean()), rel=1e-4)
        agreement = (logs[a].argmax(-1) == logs[b].argmax(-1)).double().mean()
        assert values[a, b, "agreement"]["value"] == pytest.approx(float(agreement), abs=1e-12)
        for quantity in ("kl_ab", "kl_ba", "agreement"):
            row = values[a, b, quantity]
            assert row["low"] < row["value"] < row["high"]
    confidence = {(row["run"], row["quantity"]): row["value"] for row in own}
    for name, log in logs.items():
        top = log.exp().max(-1).values
        right = (log.argmax(-1) == targets).double()
        assert confidence[name, "entropy"] == pytest.approx(float(Categorical(logits=log).entropy().mean()), rel=1e-5)
        assert confidence[name, "max_probability"] == pytest.approx(float(top.mean()), rel=1e-5)
        assert confidence[name, "top1_accuracy"] == pytest.approx(float(right.mean()), abs=1e-12)
        places = np.minimum((top.numpy() * 5).astype(int), 4)
        gaps = [float((top - right)[places == place].sum()) for place in range(5)]
        assert confidence[name, "ece"] == pytest.approx(np.abs(gaps).sum() / probe.tokens, abs=1e-6)
    for name, value in merged["base"].named_parameters():
        assert torch.equal(state.model.get_parameter(name), value), "the base must be put back"


def test_a_moved_head_is_the_head_of_its_own_side(student, probe, probe_file, tmp_path):
    noise = torch.randn(20, 32, generator=torch.Generator().manual_seed(3))
    save_full_delta(tmp_path / "head", {"model.embed_tokens.weight": 0.1 * noise})
    moved = Run("moved", "k", str(tmp_path / "head"))
    workload = Outputs(OutputSettings(), [Run("base", "k0", None), moved], student[1], probe_file, "moved")
    rows = workload.compute(workload.setup(), workload.tasks()[0].payload)["divergences"]
    base, _ = student
    p = torch.cat(predictions(base, probe))
    kept = base.model.embed_tokens.weight.detach().clone()
    with torch.no_grad():
        base.model.embed_tokens.weight.add_(0.1 * noise)
        q = torch.cat(predictions(base, probe))
        base.model.embed_tokens.weight.copy_(kept)
    expected = torch_kl(Categorical(logits=p), Categorical(logits=q)).mean()
    assert rows[0]["value"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("pairs", "count"), [("base", 2), ("reference", 3), ("all", 3)])
def test_pairs_are_those_asked_for_under_the_same_keys(student, probe_file, runs, pairs, count):
    found = Outputs(OutputSettings(pairs=pairs), runs, student[1], probe_file, "r1").tasks()
    every = Outputs(OutputSettings(pairs="all"), runs, student[1], probe_file, "r1").tasks()
    assert len([task for task in found if len(task.payload) == 2]) == count
    assert {task.key for task in found} <= {task.key for task in every}
    other = Outputs(OutputSettings(pairs="all", seed=1), runs, student[1], probe_file, "r1").tasks()
    assert not {task.key for task in every} & {task.key for task in other}


def test_a_diverged_run_is_refused(student, probe_file, tmp_path):
    save_full_delta(tmp_path / "bad", {"model.layers.0.mlp.up_proj.weight": torch.full((64, 32), math.inf)})
    bad = [Run("base", "k0", None), Run("bad", "kb", str(tmp_path / "bad"))]
    workload = Outputs(OutputSettings(), bad, student[1], probe_file, "bad")
    state, tasks = workload.setup(), workload.tasks()
    for task in (tasks[0], tasks[2]):
        with pytest.raises(DeltaError, match="bad"):
            workload.compute(state, task.payload)
