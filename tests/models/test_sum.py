"""Sums of the deltas of stages, against dense fp64 sums and PEFT's own adapters."""

from types import SimpleNamespace

import pytest
import torch
from delta_cases import Q, V, gaussian, low_rank, save_lora
from peft import PeftModel
from tiny import tiny_peft, tiny_qwen

from raygeo.errors import DeltaError
from raygeo.models import sum as summing
from raygeo.models.delta import Dense, LowRank, open_delta, save_full_delta
from raygeo.models.sum import save_sum

Q0, V1, UP = Q.format(0), V.format(1), "model.layers.0.mlp.up_proj"


@pytest.fixture
def stages(tmp_path):
    """Two adapters of different rank and scale that have one module in common, and a full delta."""
    first = save_lora(tmp_path / "first", {Q0: low_rank(6, 5, 2, 1, 2.0), V1: low_rank(4, 5, 2, 2, 2.0)})
    second = save_lora(tmp_path / "second", {Q0: low_rank(6, 5, 3, 3, 0.5), UP: low_rank(8, 5, 3, 4, 0.5)})
    save_full_delta(tmp_path / "full", {f"{Q0}.weight": gaussian(6, 5, seed=5), "norm.weight": gaussian(5, seed=6)})
    return SimpleNamespace(adapters=[first, second], all=[first, second, tmp_path / "full"], out=tmp_path)


def summed(deltas, out, count=None):
    out.mkdir()
    save_sum(deltas, out, count)
    return open_delta(out)


def dense(deltas):
    """The sum in fp64, by parameter."""
    total = {}
    for delta in map(open_delta, deltas):
        for name, entry in delta.items():
            value = entry.dense(torch.float64)
            total[name] = total[name] + value if name in total else value
    return total


def test_adapters_add_up_to_an_adapter(stages):
    found, expected = summed(stages.adapters, stages.out / "sum"), dense(stages.adapters)
    assert found.low_rank
    assert set(found) == set(expected)
    assert {name: entry.a.shape[0] for name, entry in found.items()} == {
        f"{Q0}.weight": 5, f"{V1}.weight": 2, f"{UP}.weight": 3,
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(found[name].dense(torch.float64), value, rtol=1e-6, atol=1e-6)


def test_with_a_full_delta_the_sum_is_full(stages, monkeypatch):
    monkeypatch.setattr(summing, "SHARD_BYTES", 200)
    found, expected = summed(stages.all, stages.out / "sum"), dense(stages.all)
    assert len([*(stages.out / "sum").glob("delta-*-of-*.safetensors")]) > 1
    assert not found.low_rank
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].dense(torch.float64), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("which", ["adapters", "all"])
def test_sums_of_the_first_have_the_parameters_of_all(stages, which):
    deltas = getattr(stages, which)
    found, whole, expected = (
        summed(deltas, stages.out / "first only", 1), summed(deltas, stages.out / "sum"), dense(deltas[:1])
    )  # fmt: skip
    assert set(found) == set(whole)
    assert {type(entry) for entry in found.values()} == {LowRank if which == "adapters" else Dense}
    if found.low_rank:
        assert {name: (e.a.shape, e.scale) for name, e in found.items()} == {
            name: (e.a.shape, e.scale) for name, e in whole.items()
        }
    for name, entry in found.items():
        value = expected.get(name, torch.zeros(entry.shape, dtype=torch.float64))
        torch.testing.assert_close(entry.dense(torch.float64), value, rtol=1e-6, atol=1e-6)


def test_peft_makes_of_a_sum_what_it_makes_of_one_adapter_merged_after_the_other(tmp_path):
    parts = []
    model = tiny_qwen()
    for number, pattern in enumerate(({"v_proj": 2}, {})):
        peft = tiny_peft(rank_pattern=pattern, use_rslora=True)
        with torch.no_grad():
            for i, (name, value) in enumerate(sorted(peft.named_parameters())):
                if "lora_B" in name:
                    value.copy_(0.1 * gaussian(*value.shape, seed=100 * number + i))
        peft.save_pretrained(tmp_path / f"{number}")
        parts.append(tmp_path / f"{number}")
        model = PeftModel.from_pretrained(model, tmp_path / f"{number}").merge_and_unload()
    summed(parts, tmp_path / "sum")
    together = PeftModel.from_pretrained(tiny_qwen(), tmp_path / "sum").merge_and_unload()
    base = dict(tiny_qwen().named_parameters())
    moved = 0
    for name, value in model.named_parameters():
        torch.testing.assert_close(together.get_parameter(name), value, rtol=1e-5, atol=1e-6)
        moved += not torch.equal(value, base[name])
    assert moved > 2


def test_deltas_of_other_models_do_not_add(stages):
    save_full_delta(stages.out / "wide", {f"{Q0}.weight": gaussian(7, 5, seed=1)})
    (stages.out / "sum").mkdir()
    with pytest.raises(DeltaError, match="not of one model"):
        save_sum([*stages.adapters, stages.out / "wide"], stages.out / "sum")
