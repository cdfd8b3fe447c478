import pytest
import torch
from delta_cases import Q, V, gaussian, low_rank, save_lora
from tiny import tiny_peft, tiny_qwen

from raygeo.errors import DeltaError
from raygeo.models.delta import open_delta, save_full_delta
from raygeo.models.mix import MixedWeights, applied

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
    delta, model = open_delta(tmp_path), tiny_qwen().double()
    with torch.no_grad():
        expected, base = peft.double()(IDS).logits, model(IDS).logits
        with applied(model, delta) as tuned:
            torch.testing.assert_close(tuned(IDS).logits, expected, rtol=1e-12, atol=1e-12)
        with applied(model, delta, 0.0):
            assert torch.equal(model(IDS).logits, base)
        assert (expected - base).abs().max() > 1e-3
        assert torch.equal(model(IDS).logits, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_is_the_linear_combination_of_products(lora_a, lora_b, full, dtype):
    model = tiny_qwen().to(dtype)
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
    model, other = tiny_qwen(), tiny_qwen()
    twice = MixedWeights(model, {*lora_a, *lora_b})
    twice.set([(1.0, lora_a)])
    twice.set([(0.25, lora_b)])
    MixedWeights(other, {*lora_a, *lora_b}).set([(0.25, lora_b)])
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_restore_is_exact(lora_a, full, dtype):
    model = tiny_qwen().to(dtype)
    base = weights(model)
    mixed = MixedWeights(model, {*lora_a, *full})
    mixed.set([(1e4, lora_a), (-3.0, full)])
    assert not torch.equal(model.get_parameter(V1), base[V1])
    mixed.restore()
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_empty_mixture_is_the_base(lora_a):
    model = tiny_qwen()
    base = weights(model)
    mixed = MixedWeights(model, lora_a)
    mixed.set([(1.0, lora_a)])
    mixed.set([])
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_complete_deltas_are_added_to_bf16_weights_in_fp32_and_rounded_once(full):
    model = tiny_qwen().bfloat16()
    base = model.get_parameter(V1).detach().float()
    MixedWeights(model, full).set([(1 / 3, full), (2 / 3, full)])
    value = full[V1].dense()
    exact = base.add(value, alpha=1 / 3).add(value, alpha=2 / 3)
    assert torch.equal(model.get_parameter(V1), exact.bfloat16())
    assert ((model.get_parameter(V1).float() - exact).abs() <= exact.abs() / 256).all()


def test_lora_deltas_of_bf16_weights_are_what_peft_computes_beside_them_bit_for_bit(tmp_path):
    peft = tiny_peft()
    model = tiny_qwen()
    for name, value in [*peft.named_parameters(), *model.named_parameters()]:
        if "lora_" not in name:
            value.data = value.data.bfloat16()
    peft.save_pretrained(tmp_path)
    delta = open_delta(tmp_path)
    base = weights(model)
    with torch.no_grad():
        plain = model(IDS).logits
        mixed = MixedWeights(model, delta)
        with mixed.mixed([(1.0, delta)]):
            assert torch.equal(model(IDS).logits, peft(IDS).logits)
            assert not torch.equal(model(IDS).logits, plain)
            with mixed.unmixed():
                assert torch.equal(model(IDS).logits, plain)
            assert torch.equal(model(IDS).logits, peft(IDS).logits)
        assert torch.equal(model(IDS).logits, plain)
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_a_lora_delta_below_the_rounding_of_bf16_weights_is_kept_whole(lora_a, lora_b, full):
    model = tiny_qwen().bfloat16()
    layer, x = model.get_submodule(Q0.removesuffix(".weight")), torch.randn(5, 32).bfloat16()
    exact = sum(c * delta[Q0].dense(torch.float64) for c, delta in ((1e-6, lora_a), (2e-6, lora_b)))
    rounded = (layer.weight.double() + exact).bfloat16()
    assert (rounded == layer.weight).float().mean() > 0.9  # rounded into the weights it is lost
    with MixedWeights(model, [*lora_a, *lora_b, *full]).mixed([(1e-6, lora_a), (2e-6, lora_b)]):
        layer.weight.data.zero_()
        found = layer(x).double()
    expected = x.double() @ exact.T
    assert ((found - expected).abs() <= expected.abs() / 128 + 1e-9).all()


def test_the_base_is_copied_in_bf16_where_that_is_exact(full):
    model = tiny_qwen().bfloat16().float()
    base = weights(model)
    mixed = MixedWeights(model, full)
    with mixed.mixed([(1.0, full)]):
        assert not torch.equal(model.get_parameter(EMBED), base[EMBED])
        with mixed.unmixed():
            assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())
    assert model.get_parameter(EMBED).dtype == torch.float32


def test_base_comes_back_after_an_error(lora_a):
    model = tiny_qwen()
    base = weights(model)

    def fail():
        with MixedWeights(model, lora_a).mixed([(1.0, lora_a)]):
            assert not torch.equal(model.get_parameter(Q0), base[Q0])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_base_comes_back_where_a_mixture_cannot_be_set(tmp_path, full):
    model = tiny_qwen()
    base = weights(model)
    last = sorted(full)[-1]
    save_full_delta(tmp_path / "wrong", {name: full[name].dense() for name in full} | {last: gaussian(3, 3, seed=0)})
    wrong = open_delta(tmp_path / "wrong")
    with pytest.raises(DeltaError, match=r"\(3, 3\)"), MixedWeights(model, full).mixed([(1.0, wrong)]):
        pass
    assert all(torch.equal(value, base[name]) for name, value in weights(model).items())


def test_tied_output_layer_follows_the_embedding(full):
    model = tiny_qwen(tie_word_embeddings=True)
    with MixedWeights(model, full).mixed([(1.0, full)]):
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_deltas_of_another_model_are_refused(tmp_path, lora_a, lora_b):
    with pytest.raises(DeltaError, match=r"layers\.9.*lacks"):
        MixedWeights(tiny_qwen(), {"model.layers.9.self_attn.q_proj.weight"})
    save_full_delta(tmp_path / "wide", {Q0: gaussian(32, 1, seed=0)})
    wide = open_delta(tmp_path / "wide")
    with pytest.raises(DeltaError, match=r"\(32, 1\)"):
        MixedWeights(tiny_qwen(), wide).set([(1.0, wide)])
    with pytest.raises(DeltaError, match="not announced"):
        MixedWeights(tiny_qwen(), lora_b).set([(1.0, lora_a)])


def test_the_base_is_there_for_a_while_inside_a_mixture(lora_a, full):
    model = tiny_qwen()
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
