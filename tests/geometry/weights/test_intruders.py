import numpy as np
import pytest
import torch
from delta_cases import Q, V, all_rows, full_run, gaussian, lora_run, low_rank
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import save_file
from tiny import tiny_qwen

from raygeo.analyses.intruders.workload import Intruders, IntruderSettings
from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.intruders import leading, left_vectors
from raygeo.geometry.weights.random_delta import random_like
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Dense, LowRank
from raygeo.models.run import Run
from raygeo.tables import BASE

Q0, V1, NORM = Q.format(0) + ".weight", V.format(1) + ".weight", "model.norm.weight"


def rows_of(runs, base, **settings):
    return all_rows(Intruders(IntruderSettings(**settings), runs, base))["intruders"]


def by_definition(weight, delta, k, epsilon):
    """Intruders and their share of the change, dense in numpy."""
    w, d = weight.double().numpy(), delta.double().numpy()
    before = np.linalg.svd(w, full_matrices=False)[0]
    u = np.linalg.svd(w + d, full_matrices=False)[0][:, :k]
    found = u[:, np.abs(u.T @ before).max(axis=1) < epsilon]
    return found.shape[1], (np.linalg.norm(found.T @ d) / np.linalg.norm(d)) ** 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deltas")
    lora = {Q.format(0): low_rank(32, 32, 4, 0), V.format(1): low_rank(16, 32, 4, 9)}
    full = {Q0: 0.3 * gaussian(32, 32, seed=5), V1: 0.05 * gaussian(16, 32, seed=6), NORM: gaussian(32, seed=7)}
    lora = {name: LowRank(0.05 * entry.b, entry.a, 2.0) for name, entry in lora.items()}
    return [Run(BASE, BASE, None), lora_run(folder, "lora", lora), full_run(folder, "full", full)]


def test_every_row_equals_its_definition_with_the_random_delta_as_its_null(runs, base):
    rows = rows_of(runs, base, k=6, epsilon=(0.5, 0.9), seed=3)
    found = {(r["run"], r["module"], r["epsilon"]): r for r in rows if r["scope"] == "module"}
    assert len(found) == 2 * 2 * 2
    for run in runs[1:]:
        for name, entry in run.open().items():
            if name == NORM:
                continue
            weight = Checkpoint(base).tensor(name)
            for epsilon in (0.5, 0.9):
                row = found[run.name, name.removesuffix(".weight"), epsilon]
                for prefix, delta in (("", entry), ("null_", random_like(entry, 3, name))):
                    count, share = by_definition(weight, delta.dense(torch.float64), 6, epsilon)
                    assert row[f"{prefix}intruders"] == count
                    assert row[f"{prefix}intruder_share"] == pytest.approx(count / 6)
                    assert row[f"{prefix}energy_share"] == pytest.approx(share, rel=1e-9)
    assert 0 < sum(row["intruders"] for row in found.values()) < sum(row["directions"] for row in found.values())


def test_totals_add_counts_and_energies(runs, base):
    rows = [r for r in rows_of(runs, base) if r["run"] == "full"]
    modules = [r for r in rows if r["scope"] == "module"]
    (whole,) = [r for r in rows if r["scope"] == "global"]
    assert {(r["scope"], r["layer"], r["module"]) for r in rows} - {("global", None, "")} == {
        *(("module", r["layer"], r["module"]) for r in modules),
        *(("layer", layer, "") for layer in (0, 1)),
        *(("module type", None, name) for name in ("q_proj", "v_proj")),
    }
    assert whole["intruders"] == sum(r["intruders"] for r in modules)
    energy, total = (sum(r[name] for r in modules) for name in ("intruder_energy", "delta_energy"))
    assert whole["energy_share"] == pytest.approx(energy / total)


def test_counts_are_those_of_peft(tmp_path):
    """PEFT's own detection, at its default k and threshold, logs how many it takes out of each layer."""
    model = tiny_qwen()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for seed, (name, values) in enumerate(adapted.named_parameters()):
            if "lora_B" in name:
                values.copy_((0.1 + 0.3 * ("layers.1" in name)) * gaussian(*values.shape, seed=seed))
    adapted.save_pretrained(tmp_path / "run")
    said = []
    reduce_intruder_dimension(adapted, logging_sink=said.append)
    expected = {}
    for line in said:
        if "ntruders" in line:
            layer, _, count = line.removeprefix("base_model.model.").partition(": ")
            expected[layer] = 0 if count == "No intruders" else int(count.rpartition(" ")[2])
    rows = rows_of([Run("run", "run", str(tmp_path / "run"))], tmp_path / "base")
    assert {r["module"]: r["intruders"] for r in rows if r["scope"] == "module"} == expected
    assert len(set(expected.values())) > 1


def test_a_new_direction_is_an_intruder_and_a_stretched_one_is_not():
    weight = torch.diag(torch.arange(20.0, 0, -1))
    before = left_vectors(weight)
    flat = torch.full((20, 1), 20**-0.5, dtype=torch.float64)
    for delta, intruders in ((1000 * flat @ flat.T, 1), (torch.diag(30 * torch.eye(20)[3]), 0)):
        found = leading(before, weight, delta, 1)
        assert found.intruders(0.5).sum() == intruders
        torch.testing.assert_close(found.energy, delta.double().square().sum()[None], rtol=1e-3, atol=0)


@pytest.mark.parametrize("entry", [low_rank(40, 24, 3, 0), Dense(gaussian(24, 40, seed=1))])
def test_the_random_delta_keeps_shape_rank_and_spectrum_and_nothing_else(entry):
    random = random_like(entry, 0)
    assert random.shape == entry.shape
    s = linalg.singular_values(entry)
    torch.testing.assert_close(linalg.singular_values(random)[: len(s)], s, rtol=1e-10, atol=1e-12)
    assert abs(linalg.inner(random, entry)) < 0.2 * linalg.norm(entry) ** 2
    torch.testing.assert_close(random_like(entry, 0).b, random.b, rtol=0, atol=0)
    assert not torch.equal(random_like(entry, 1).b, random.b)
    assert not torch.equal(random_like(entry, 0, Q0).b, random_like(entry, 0, V1).b), "each matrix has its own"


def test_random_singular_vectors_are_uniform():
    """The mean of u u' over many draws is the identity over d, and that of u is 0."""
    vectors = torch.stack([random_like(low_rank(5, 4, 1, 0), seed).b[:, 0] for seed in range(2000)])
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(vectors.T @ vectors / 2000, torch.eye(5).double() / 5, rtol=0, atol=0.03)
    assert vectors.mean(0).abs().max() < 0.05


def test_matrices_beyond_lapack_agree_with_it(tmp_path, monkeypatch):
    save_file({Q0: gaussian(30, 20, seed=0)}, tmp_path / "model.safetensors")
    run = full_run(tmp_path, "run", {Q0: 0.7 * gaussian(30, 20, seed=1)})
    exact = rows_of([run], tmp_path)[0]
    monkeypatch.setattr(linalg, "_LAPACK_LIMIT", 4)
    row = rows_of([run], tmp_path)[0]
    assert row["intruders"] == exact["intruders"] > 0
    assert row["energy_share"] == pytest.approx(exact["energy_share"], rel=1e-8)


def test_modules_are_chosen_by_pattern_and_a_pattern_of_none_is_refused(runs, base):
    rows = rows_of(runs, base, modules=("*.v_proj",))
    assert {r["module"] for r in rows if r["scope"] == "module"} == {V.format(1)}
    with pytest.raises(DeltaError, match=r"geometry.intruders.modules \['\*.mlp'\] names none"):
        rows_of(runs, base, modules=("*.mlp",))
