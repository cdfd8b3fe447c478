import math

import pytest
import torch
from delta_cases import Q, V, all_rows, gaussian, lora_run, low_rank, save_lora
from safetensors.torch import load_file, save_file
from tiny import tiny_qwen

from raygeo.analyses.norms.workload import Norms, NormSettings
from raygeo.errors import DeltaError, StudentError
from raygeo.geometry.weights import grouping
from raygeo.geometry.weights.base import BaseWeights
from raygeo.models.delta import LowRank, save_full_delta
from raygeo.models.run import Run
from raygeo.tables import BASE

EMBED = "model.embed_tokens.weight"


def rows_of(workload):
    rows = all_rows(workload)["deltas"]
    return {(row["scope"], row["module"], row["layer"]): row for row in rows}


def norms_of_full(tmp_path, base, tensors):
    save_full_delta(tmp_path / "full", tensors)
    return rows_of(Norms(NormSettings(), [Run("full", "k", str(tmp_path / "full"))], base))


def test_base_norms_and_shapes_are_those_of_the_parameters(base):
    weights = BaseWeights(base)
    for name, parameter in tiny_qwen().named_parameters():
        assert weights.shape(name) == tuple(parameter.shape)
        assert weights.norm(name) == pytest.approx(parameter.double().norm().item(), rel=1e-13)
        assert weights.norm(name) == weights.norm(name)


def test_base_weights_come_from_shards_and_bf16_files_too(tmp_path):
    model = tiny_qwen().bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    weights = BaseWeights(tmp_path)
    for name, parameter in model.named_parameters():
        assert weights.norm(name) == pytest.approx(parameter.double().norm().item(), rel=1e-13)


@pytest.mark.parametrize("stored", [EMBED, "lm_head.weight"])
def test_tied_weights_have_one_name_whichever_they_are_stored_under(tmp_path, stored):
    model = tiny_qwen()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[stored] = tensors.pop(EMBED)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights = BaseWeights(tmp_path)
    assert weights.norm(EMBED) == pytest.approx(model.get_parameter(EMBED).double().norm().item(), rel=1e-13)
    with pytest.raises(DeltaError, match=r"'lm_head\.weight', which is one parameter with model\.embed_tokens\.weight"):
        weights.shape("lm_head.weight")


def test_untied_weights_are_kept_apart(tmp_path):
    save_file({EMBED: torch.ones(2), "lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    weights = BaseWeights(tmp_path)
    assert weights.norm("lm_head.weight") == 0
    assert weights.norm(EMBED) == pytest.approx(math.sqrt(2))


def test_bases_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(StudentError, match=r"model\.safetensors"):
        BaseWeights(tmp_path)
    save_file({"a.weight": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(StudentError, match="unquantised"):
        BaseWeights(tmp_path)
    save_file({"a.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DeltaError, match="another model"):
        BaseWeights(tmp_path).norm("b.weight")


def test_known_matrices_give_known_norms_and_ranks(tmp_path, base):
    q = torch.zeros(32, 32)
    q[:4, 5:9] = 3 * torch.eye(4)
    v = torch.zeros(16, 32)
    v[0, 0], v[1, 1] = 4.0, 3.0
    norm = torch.full((32,), 0.5)
    name_q, name_v, name_n = Q.format(0) + ".weight", V.format(1) + ".weight", "model.norm.weight"
    rows = norms_of_full(tmp_path, base, {name_q: q, name_v: v, name_n: norm})
    model = tiny_qwen()

    row = rows["module", Q.format(0), 0]
    assert row["norm"] == pytest.approx(6)
    assert row["spectral_norm"] == pytest.approx(3)
    assert [row[f"{kind}_rank"] for kind in ("stable", "effective", "participation")] == pytest.approx([4, 4, 4])
    base_q = model.get_parameter(name_q).double().norm().item()
    assert row["base_norm"] == pytest.approx(base_q)
    assert row["relative_norm"] == pytest.approx(6 / base_q)

    row = rows["module", V.format(1), 1]
    assert row["norm"] == pytest.approx(5)
    assert row["spectral_norm"] == pytest.approx(4)
    assert row["stable_rank"] == pytest.approx(25 / 16)
    effective = math.exp(-(4 / 7) * math.log(4 / 7) - (3 / 7) * math.log(3 / 7))
    assert row["effective_rank"] == pytest.approx(effective)
    assert row["participation_rank"] == pytest.approx(625 / 337)

    row = rows["module", "model.norm", None]
    assert row["norm"] == pytest.approx(math.sqrt(8))
    assert row["relative_norm"] == pytest.approx(0.5)
    assert not {"spectral_norm", "stable_rank", "effective_rank", "participation_rank"} & row.keys()

    assert rows["layer", "", 0]["norm"] == pytest.approx(6)
    assert "stable_rank" not in rows["layer", "", 1]
    row = rows["global", "", None]
    assert row["norm"] == pytest.approx(math.sqrt(36 + 25 + 8))
    whole = math.sqrt(sum(model.get_parameter(name).double().norm().item() ** 2 for name in (name_q, name_v, name_n)))
    assert row["base_norm"] == pytest.approx(whole)
    assert row["relative_norm"] == pytest.approx(math.sqrt(69) / whole)
    assert row["spectral_norm"] == pytest.approx(4)
    assert row["effective_rank"] == pytest.approx((4 + effective) / 2)
    assert len(rows) == 3 + 2 + 1


def test_layers_join_their_modules(tmp_path, base):
    entries = {
        name.format(layer): low_rank(out, 32, 4, seed=layer) for name, out in ((Q, 32), (V, 16)) for layer in (0, 1)
    }
    folder = save_lora(tmp_path / "lora", entries)
    rows = rows_of(Norms(NormSettings(), [Run("lora", "k", str(folder))], base))
    for layer in (0, 1):
        q, v = entries[Q.format(layer)].dense(torch.float64), entries[V.format(layer)].dense(torch.float64)
        block = torch.block_diag(q, v)
        row = rows["layer", "", layer]
        assert row["norm"] == pytest.approx(block.norm().item(), rel=1e-12)
        assert row["spectral_norm"] == pytest.approx(torch.linalg.matrix_norm(block, 2).item(), rel=1e-12)


def test_low_rank_and_full_deltas_of_one_product_agree(tmp_path, base):
    entry = LowRank(gaussian(32, 3, seed=0), gaussian(3, 32, seed=1), 0.5)
    lora = save_lora(tmp_path / "lora", {Q.format(0): entry})
    full = norms_of_full(tmp_path, base, {Q.format(0) + ".weight": entry.dense(torch.float64)})
    for place, row in rows_of(Norms(NormSettings(), [Run("lora", "k", str(lora))], base)).items():
        assert row.keys() == full[place].keys()
        numbers = [column for column, value in row.items() if isinstance(value, float)]
        assert [row[column] for column in numbers] == pytest.approx(
            [full[place][column] for column in numbers], rel=1e-5
        )


def test_a_matrix_that_did_not_move_has_no_ranks(tmp_path, base):
    zero, moved = torch.zeros(32, 32), torch.eye(16, 32)
    rows = norms_of_full(tmp_path, base, {Q.format(0) + ".weight": zero, V.format(0) + ".weight": moved})
    row = rows["module", Q.format(0), 0]
    assert row["norm"] == row["spectral_norm"] == row["relative_norm"] == 0
    assert "stable_rank" not in row
    assert rows["global", "", None]["stable_rank"] == pytest.approx(16)


def test_relative_norm_is_null_over_a_base_of_zero(tmp_path):
    save_file({"a.bias": torch.zeros(4)}, tmp_path / "model.safetensors")
    rows = norms_of_full(tmp_path, tmp_path, {"a.bias": torch.ones(4)})
    assert rows["module", "a.bias", None]["relative_norm"] is None
    assert rows["global", "", None]["norm"] == pytest.approx(2)


def test_deltas_of_another_base_are_refused(tmp_path, base):
    with pytest.raises(DeltaError, match=r"shape \(32, 8\)"):
        norms_of_full(tmp_path, base, {Q.format(0) + ".weight": torch.ones(32, 8)})
    with pytest.raises(DeltaError, match="lacks"):
        norms_of_full(tmp_path, base, {Q.format(7) + ".weight": torch.ones(32, 32)})


def test_tasks_are_groups_of_one_runs_parameters(tmp_path, base, monkeypatch):
    runs = [Run(BASE, "b", None)]
    for name in ("x", "y"):
        entries = {Q.format(layer): low_rank(32, 32, 4, seed=layer) for layer in (0, 1)}
        runs.append(lora_run(tmp_path, name, entries))
    whole = Norms(NormSettings(), runs, base)
    assert [(task.payload[0].name, task.cost) for task in whole.tasks()] == [("x", 512), ("y", 512)]
    elsewhere = Norms(NormSettings(), runs, "/elsewhere").tasks()
    assert [task.key for task in elsewhere] == [task.key for task in whole.tasks()]
    expected = all_rows(whole)
    monkeypatch.setattr(grouping, "GROUP_SIZE", 300)
    tasks = whole.tasks()
    assert [(task.payload[0].name, len(task.payload[1])) for task in tasks] == [("x", 1)] * 2 + [("y", 1)] * 2
    assert len({task.key for task in tasks}) == 4
    assert all_rows(whole) == expected
