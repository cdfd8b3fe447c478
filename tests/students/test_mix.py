import pytest
import torch
from delta_cases import Q, V, gaussian, low_rank, save_lora, tiny_model, tiny_peft

from raygeo.errors import DeltaError
from raygeo.students.delta import open_delta, save_full_delta
from raygeo.students.mix import MixedWeights

IDS = torch.tensor([[1, 5, 9, 2, 40, 3], [7, 7, 0, 11, 30, 8]])
Q0, V1 = Q.format(0) + ".weight", V.format(1) + ".weight"
EMBED = "model.embed_tokens.weight"


@pytest.fixture
def lora_a(tmp_path):
    entries = {Q.format(0): low_rank(32, 32, 4, seed=0, scale=0.5), V.format(1): low_rank(16, 32, 4, seed=1, scale=0.5)}
    return open_delta(save_lora(tmp_path / "a", entries))


@pytest.fixture
def lora_b(tmp_path):
    return open_delta(save_lora(tmp_path / "b", {Q.format(0): low_rank(32, 32, 2, seed=2, scale=3.0)}))


@pytest.fixture
def full(tmp_path):
    save_full_delta(tmp_path / "full", {V1: gaussian(16, 32, seed=3), EMBED: gaussian(48, 32, seed=4)})
    return open_delta(tmp_path / "full")


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_model_with_its_delta_computes_what_peft_computes(tmp_path):
    peft = tiny_peft(rank_pattern={"v_proj": 2}, use_rslora=True)
    peft.save_pretrained(tmp_path)
    delta, model = open_delta(tmp_path), tiny_model().double()
    with torch.no_grad():
        expected, base = peft.double()(IDS).logits, model(IDS).logits
        with MixedWeights(model, delta).mixed([(1.0, delta)]) as mixed:
            torch.testing.assert_close(mixed(IDS).logits, expected, rtol=1e-12, atol=1e-12)
        assert (expected - base).abs().max() > 1e-3
        assert torch.equal(model(IDS).logits, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_is_the_linear_combination_of_products(lora_a, lora_b, full, dtype):
    model = tiny_model().to(dtype)
    base = weights(model)
    MixedWeights(model, {*lora_a, *lora_b, *full}).set([(0.5, lora_a), (-2.0, lora_b), (1.5, full)])
    expected = {name: value.to(torch.float64, copy=True) for name, value in base.items()}
    for coefficient, delta in [(0.5, lora_a), (-2.0, lora_b), (1.5, full)]:
        for name, entry in delta.items():
            expected[name] += coefficient * entry.dense(torch.float64)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-5
    for name, value in weights(model).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=tolerance, atol=tolerance)
        assert (name in {Q0, V1, EMBED}) != torch.equal(value, base[name])


def test_setting_twice_does_not_accumulate(lora_a, lora_b):
    model, other = tiny_model(), tiny_model()
    twice = MixedWeights(model, {*lora_a, *lora_b})
    twice.set([(1.0, lora_a)])
    twice.set([(0.25, lora_b)])
    MixedWeights(other, {*lora_a, *lora_b}).set([(0.25, lora_b)])
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_restore_is_exact(lora_a, full, dtype):
    model = tiny_model().to(dtype)
    base = weights(model)
    mixed = MixedWeights(model, {*lora_a, *full})
    mixed.set([(1e4, lora_a), (-3e-3, full)])
    assert not torch.equal(model.get_parameter(Q0), base[Q0])
    mixed.restore()
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_empty_mixture_is_the_base(lora_a):
    model = tiny_model()
    base = weights(model)
    mixed = MixedWeights(model, lora_a)
    mixed.set([(1.0, lora_a)])
    mixed.set([])
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_bf16_weights_are_summed_in_fp32_and_rounded_once(lora_a):
    model = tiny_model().bfloat16()
    base = model.get_parameter(Q0).detach().float()
    MixedWeights(model, lora_a).set([(1 / 3, lora_a), (2 / 3, lora_a)])
    product = lora_a[Q0].dense()
    assert torch.equal(model.get_parameter(Q0), (base.add(product, alpha=1 / 3).add(product, alpha=2 / 3)).bfloat16())


def test_base_comes_back_after_an_error(lora_a):
    model = tiny_model()
    base = weights(model)

    def fail():
        with MixedWeights(model, lora_a).mixed([(1.0, lora_a)]):
            assert not torch.equal(model.get_parameter(Q0), base[Q0])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_tied_output_layer_follows_the_embedding(full):
    model = tiny_model(tied=True)
    with MixedWeights(model, full).mixed([(1.0, full)]):
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_deltas_of_another_model_are_refused(tmp_path, lora_a, lora_b):
    with pytest.raises(DeltaError, match=r"layers\.9.*lacks"):
        MixedWeights(tiny_model(), {"model.layers.9.self_attn.q_proj.weight"})
    save_full_delta(tmp_path / "wide", {Q0: gaussian(32, 1, seed=0)})
    wide = open_delta(tmp_path / "wide")
    with pytest.raises(DeltaError, match=r"\(32, 1\)"):
        MixedWeights(tiny_model(), wide).set([(1.0, wide)])
    with pytest.raises(DeltaError, match="not announced"):
        MixedWeights(tiny_model(), lora_b).set([(1.0, lora_a)])


def test_the_base_is_there_for_a_while_inside_a_mixture(lora_a, full):
    model = tiny_model()
    base, mixture = weights(model), [(1.0, lora_a), (0.5, full)]
    mixed = MixedWeights(model, [*lora_a, *full])
    with mixed.mixed(mixture):
        moved, logits = weights(model), model(IDS).logits
        assert not torch.equal(moved[EMBED], base[EMBED])
        with mixed.unmixed():
            assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
            assert model.lm_head.weight is model.model.embed_tokens.weight
        assert all(torch.equal(value, moved[name]) for name, value in weights(model).items())
        assert torch.equal(model(IDS).logits, logits)
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
    with pytest.raises(RuntimeError, match="inside"), mixed.mixed(mixture), mixed.unmixed():
        raise RuntimeError("inside")
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
