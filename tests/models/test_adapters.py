import pytest
import torch
from peft import PeftModel
from tiny import tiny_gpt2, tiny_peft, tiny_qwen

from raygeo.errors import DeltaError
from raygeo.models.adapters import rank_of, save_adapter
from raygeo.models.delta import open_delta, save_full_delta
from raygeo.models.lora import LoraSettings, attach_lora
from raygeo.models.mix import MixedWeights, mixture_of

IDS = torch.arange(3, 23).view(2, 10)


@pytest.fixture(scope="module")
def deltas(tmp_path_factory):
    """Adapters of ranks 4 and 2, of different modules and scales."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_peft(1).save_pretrained(folder / "a")
    tiny_peft(2, r=2, lora_alpha=6, target_modules=["q_proj", "o_proj"], use_rslora=True).save_pretrained(folder / "b")
    return open_delta(folder / "a"), open_delta(folder / "b")


@pytest.mark.parametrize("coefficients", [(0.3, 0.7), (1.0, 0.0), (-0.5, 1.5)])
def test_the_adapter_of_a_mixture_is_the_sum_of_scaled_deltas(deltas, tmp_path, coefficients):
    mixture = list(zip(coefficients, deltas, strict=True))
    assert save_adapter(tmp_path / "joined", mixture) == rank_of(mixture) == 6
    found = open_delta(tmp_path / "joined")
    assert set(found) == set(deltas[0]) | set(deltas[1])
    for name, entry in found.items():
        dense = [c * delta[name].dense(torch.float64) for c, delta in mixture if name in delta]
        torch.testing.assert_close(entry.dense(torch.float64), sum(dense), rtol=1e-5, atol=1e-7)


def test_peft_loads_it_and_gives_the_logits_of_mixed_weights(deltas, tmp_path):
    mixture = list(zip((0.4, 0.6), deltas, strict=True))
    save_adapter(tmp_path / "joined", mixture)
    model = tiny_qwen()
    with torch.no_grad(), MixedWeights(model, {n for d in deltas for n in d}).mixed(mixture):
        expected = model(IDS).logits
    adapted = PeftModel.from_pretrained(tiny_qwen(), tmp_path / "joined").eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, expected, rtol=0, atol=1e-5)
        assert (expected - tiny_qwen()(IDS).logits).abs().max() > 1e-3


def test_layers_that_hold_their_weights_transposed_stay_so(tmp_path):
    adapted = attach_lora(tiny_gpt2(), LoraSettings(r=2, target_modules=("c_attn",)), 0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
        adapted.save_pretrained(tmp_path / "one")
        save_adapter(tmp_path / "half", [(0.5, open_delta(tmp_path / "one"))])
        whole, half = (PeftModel.from_pretrained(tiny_gpt2(), tmp_path / name) for name in ("one", "half"))
        weights = [each.merge_and_unload().transformer.h[0].attn.c_attn.weight for each in (whole, half)]
    moved, halved = (weight - tiny_gpt2().transformer.h[0].attn.c_attn.weight for weight in weights)
    torch.testing.assert_close(halved, moved / 2, rtol=1e-5, atol=1e-6)


def test_a_delta_of_whole_weights_is_refused(tmp_path):
    save_full_delta(tmp_path / "full", {"model.norm.weight": torch.ones(32)})
    with pytest.raises(DeltaError, match="no adapter holds"):
        save_adapter(tmp_path / "joined", [(1.0, open_delta(tmp_path / "full"))])


def test_what_is_added_to_a_model_is_known_while_it_is(deltas):
    model, mixture = tiny_qwen(), [(0.5, deltas[0])]
    weights = MixedWeights(model, deltas[0])
    assert mixture_of(model) == []
    with weights.mixed(mixture):
        assert mixture_of(model) == mixture
    assert mixture_of(model) == []
