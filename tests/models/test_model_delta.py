"""Complete models as deltas: what is read, and what is refused and how."""

import json
import pickle

import pytest
import torch
from delta_cases import Q, Reads, differences, gaussian
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import save_model, tiny_peft, tiny_qwen

from raygeo.errors import DeltaError, StudentError
from raygeo.models import mix
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Dense, open_delta
from raygeo.models.mix import MixedWeights

Q0 = Q.format(0) + ".weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tuned"), seed=1)


@pytest.fixture
def single(tmp_path):
    """Save the tiny model in one file, its tensors changed, under ``tmp_path``."""

    def save(change=lambda tensors: None, name="odd"):
        tiny_qwen().save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        return tmp_path / name

    return save


def test_a_model_beside_its_base_is_their_difference(tuned, base):
    delta = open_delta(tuned, base)
    expected = differences(tuned, base)
    assert list(delta) == sorted(expected)
    assert not delta.low_rank
    assert delta.sizes == {name: value.numel() for name, value in expected.items()}
    for name, entry in pickle.loads(pickle.dumps(delta)).items():
        assert isinstance(entry, Dense)
        assert entry.value.dtype == torch.float32
        assert torch.equal(entry.value, expected[name])


def test_bf16_models_are_subtracted_in_fp32(base, tmp_path):
    rounded = save_model(tmp_path, seed=3, dtype=torch.bfloat16)
    exact = Checkpoint(rounded).tensor(Q0).float() - Checkpoint(base).tensor(Q0)
    assert torch.equal(open_delta(rounded, base)[Q0].value, exact)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}])
def test_a_merged_adapter_of_any_kind_is_what_it_does_to_the_weights(options, base, tmp_path):
    peft = tiny_peft(**options)
    peft.save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(tiny_qwen(), tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    delta = open_delta(tmp_path / "merged", base)
    before, after = dict(tiny_qwen().named_parameters()), dict(merged.named_parameters())
    assert {name for name, entry in delta.items() if entry.value.any()} == {
        name for name in before if "q_proj" in name or "v_proj" in name
    }
    for name, entry in delta.items():
        assert torch.equal(entry.value, after[name] - before[name])
    if "use_dora" in options:
        with pytest.raises(DeltaError, match="use_dora"):
            open_delta(tmp_path / "adapter")


def test_a_tied_head_counts_once_wherever_it_is_stored(base, single):
    both = single(lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert HEAD not in Checkpoint(both).names()
    assert list(open_delta(both, base)) == list(open_delta(base, base))
    other = single(lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}), "head")
    assert not open_delta(other, base)[EMBEDDING].value.any()


def test_untied_heads_are_kept_apart(tmp_path):
    for name, seed in (("base", None), ("tuned", 1)):
        save_model(tmp_path / name, seed=seed, tied=False)
    delta = open_delta(tmp_path / "tuned", tmp_path / "base")
    assert {HEAD, EMBEDDING} <= set(delta)
    assert not torch.equal(delta[HEAD].value, delta[EMBEDDING].value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(Q0), r"missing from its weights.*layers\.0\.self_attn\.q_proj\.weight"),
        (lambda t: t.update({"extra.weight": torch.ones(2)}), r"does not have \(extra\.weight\), layers left over"),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(64, 32)}),
            r"does not have \(model\.layers\.2\.mlp\.up_proj\.weight\), layers left over",
        ),
        (lambda t: t.update({Q0: torch.ones(4, 32)}), r"another shape than config\.json says .*q_proj"),
        (lambda t: t.update({Q0: torch.ones(32, 32, dtype=torch.int8)}), "q_proj.* stored as I8.*unquantised"),
        (lambda t: t.update({Q0: torch.ones(32, 32, dtype=torch.bool)}), "q_proj.* stored as BOOL"),
        (lambda t: t.update({Q0: torch.ones(32, 32, dtype=torch.complex64)}), "q_proj.* stored as C64"),
    ],
)
def test_weights_that_are_not_those_of_their_configuration_are_refused_by_name(base, single, change, said):
    with pytest.raises(StudentError, match=said):
        open_delta(single(change), base)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"num_hidden_layers": 1}, r"lacks model\.layers\.1\..* and \d+ more, unlike"),
        ({"num_hidden_layers": 3}, r"also has model\.layers\.2\..* and \d+ more, unlike"),
        ({"intermediate_size": 16}, r"\[32, 16\] where .* has \[32, 64\]; it was trained"),
        (
            {"vocabulary": 50},
            r"embed_tokens\.weight as \[50, 32\] where .* has \[48, 32\]; its vocabulary was resized.*resize_token",
        ),
        ({"tie_word_embeddings": False}, r"an output head of its own \(lm_head\.weight\).*tie_word_embeddings"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name(base, tmp_path, shape, said):
    tiny_qwen(**({"vocabulary": 48} | shape)).save_pretrained(tmp_path)
    with pytest.raises(DeltaError, match=said):
        open_delta(tmp_path, base)


def test_a_head_of_other_values_beside_the_embeddings_is_a_head_of_its_own(base, single):
    """As transformers loads it, whatever the configuration says."""
    odd = single(lambda tensors: tensors.update({HEAD: torch.ones(48, 32)}))
    with pytest.raises(DeltaError, match=r"an output head of its own \(lm_head\.weight\)"):
        open_delta(odd, base)


def test_a_model_without_its_base_is_no_delta(tuned):
    with pytest.raises(DeltaError, match="only beside the base"):
        open_delta(tuned)


def test_damaged_shards_are_named(base, tmp_path):
    save_model(tmp_path, seed=1)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(StudentError, match=shard.name):
        open_delta(tmp_path, base)
    shard.unlink()
    with pytest.raises(StudentError, match=shard.name):
        open_delta(tmp_path, base)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({}))
    with pytest.raises(StudentError, match="damaged weights"):
        open_delta(tmp_path, base)


def test_checkpoints_are_equal_by_their_values_and_not_their_files(base, tuned, single):
    assert Checkpoint(base).equals(Checkpoint(single()))
    assert not Checkpoint(base).equals(Checkpoint(tuned))
    changed = single(lambda tensors: tensors[Q0][0].fill_(0), "changed")
    assert not Checkpoint(base).equals(Checkpoint(changed))


def test_mixtures_of_models_are_read_in_blocks_and_exact(base, tuned, monkeypatch):
    monkeypatch.setattr(mix, "_BLOCK", 100)
    expected = differences(tuned, base)
    model = tiny_qwen().double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    reads = Reads(monkeypatch)
    delta = open_delta(tuned, base)
    with MixedWeights(model, delta).mixed([(0.25, delta)]):
        assert 0 < reads.largest <= 100
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, before[name] + 0.25 * expected[name].double(), rtol=0, atol=1e-15)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_lora_factors_are_never_multiplied_out_two_at_a_time(tmp_path, monkeypatch):
    from raygeo.models.delta import LowRank

    tiny_peft().save_pretrained(tmp_path)
    delta, alive, most = open_delta(tmp_path), [], []
    original = LowRank.dense

    def dense(entry, *how):
        import weakref

        product = original(entry, *how)
        alive.append(weakref.ref(product))
        most.append(sum(reference() is not None for reference in alive))
        return product

    monkeypatch.setattr(LowRank, "dense", dense)
    MixedWeights(tiny_qwen(), delta).set([(0.5, delta), (0.5, delta)])
    assert len(most) == 2 * len(delta)
    assert max(most) == 1


def test_vectors_and_scalars_are_read_too(tmp_path):
    for name, shift in (("base", 0.0), ("tuned", 0.5)):
        (tmp_path / name).mkdir()
        tensors = {"a.bias": gaussian(5, seed=0) + shift, "b.scale": torch.tensor(2.0 + shift)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    delta = open_delta(tmp_path / "tuned", tmp_path / "base")
    assert delta["b.scale"].value.item() == 0.5
    assert [block.item() for block in delta["b.scale"].blocks(1)] == [0.5]
    assert sum(len(block) for block in delta["a.bias"].blocks(2)) == 5
