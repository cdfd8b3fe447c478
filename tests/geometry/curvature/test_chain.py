"""Products that hold one layer's graph at a time, against those of whole graphs and dense matrices."""

from contextlib import nullcontext

import pytest
import torch
from curvature_cases import dense_ggn, dense_hessian, make_probe
from tiny import tiny_qwen
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from raygeo.errors import StudentError
from raygeo.geometry.curvature.chain import checkpointed
from raygeo.geometry.curvature.draws import rademacher
from raygeo.geometry.curvature.operators import GGN, Hessian
from raygeo.models.likelihood import token_logprobs

PROBE = make_probe([(2, 1), (3, 7), (1, 2), (2, 5)], 11, seed=1)
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16,
    "initializer_range": 0.3,
}  # fmt: skip
SOME = ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"]
LAST = ["model.layers.1.self_attn.q_norm.weight", "model.norm.weight"]
EARLY = ["model.layers.0.mlp.up_proj.weight"]


def qwen(**changes):
    return tiny_qwen(11, 3, **SMALL, **changes).double()


def signs(operator, k=2):
    return rademacher(operator.n, k, torch.Generator().manual_seed(0), dtype=operator.dtype)


@pytest.mark.parametrize(("kind", "dense"), [(Hessian, dense_hessian), (GGN, dense_ggn)])
def test_products_are_the_dense_matrix(kind, dense):
    model = qwen()
    operator = kind(model, PROBE.batches(0, 2), LAST, by_layer=True)
    with sdpa_kernel(SDPBackend.MATH):
        expected = dense(model, PROBE, LAST) @ signs(operator)
    assert (operator.matmat(signs(operator)) - expected).norm() <= 1e-6 * expected.norm()  # norms are taken in fp32


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("names", [SOME, EARLY, LAST], ids=["some", "early", "last"])
def test_products_over_some_weights_are_those_of_whole_graphs(kind, names):
    model = qwen()
    whole = kind(model, PROBE.batches(0, 2), names)
    operator = kind(model, PROBE.batches(0, 2), names, by_layer=True)
    expected = whole.matmat(signs(whole))
    assert (operator.matmat(signs(operator)) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("tied", [True, False])
def test_products_and_gradients_over_all_weights_are_those_of_whole_graphs(kind, tied, monkeypatch):
    model = qwen(tie_word_embeddings=tied)
    whole = kind(model, PROBE.batches(0, 2))
    expected, gradient = whole.matmat(signs(whole)), whole.gradient()
    monkeypatch.setattr("raygeo.geometry.curvature.chain.CHUNK_LOGITS", 3 * 11)  # logits of three tokens at a time
    operator = kind(model, PROBE.batches(0, 2), by_layer=True)
    assert (operator.matmat(signs(operator)) - expected).norm() <= 1e-12 * expected.norm()
    torch.testing.assert_close(operator.gradient(), gradient, rtol=1e-12, atol=1e-14)
    exact = whole.exact(signs(whole))
    assert (operator.exact(signs(operator)) - exact).norm() <= 1e-12 * exact.norm()
    assert torch.equal(operator.matmat(signs(operator)), operator.matmat(signs(operator)))


def saved_bytes(model, **options):
    """Most bytes that graphs of one product hold at once, parameters apart."""
    own = {value.data_ptr() for value in model.parameters()}
    held, most = {}, 0

    class Held:
        def __init__(self, tensor):
            nonlocal most
            self.tensor, self.place = tensor.detach(), None  # its graph would never be freed
            if tensor.data_ptr() not in own:
                self.place = tensor.untyped_storage().data_ptr()
                held.setdefault(self.place, [tensor.untyped_storage().nbytes(), 0])[1] += 1
                most = max(most, sum(size for size, _ in held.values()))

        def __del__(self):
            if self.place is not None:
                held[self.place][1] -= 1
                if not held[self.place][1]:
                    del held[self.place]

    operator = Hessian(model, make_probe([(2, 30)], 11).batches(0, 1), **options)
    with saved_tensors_hooks(Held, lambda kept: kept.tensor):
        operator.matmat(signs(operator, 1))
    return most


def test_what_graphs_hold_does_not_grow_with_layers():
    two, eight = ({by: saved_bytes(tiny_qwen(11, num_hidden_layers=n), by_layer=by) for by in (True, False)}
                  for n in (2, 8))  # fmt: skip
    assert eight[False] > 3 * two[False]
    assert eight[True] < 1.2 * two[True]
    assert eight[True] < eight[False] / 3


def test_checkpointed_gradients_are_the_same_bits_from_less_memory():
    model, [batch] = tiny_qwen(11, num_hidden_layers=6), make_probe([(2, 30)], 11).batches(0, 1)
    found = []
    for how in (nullcontext(), checkpointed(model)):
        kept = []
        with how, saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor, lambda t: t):
            loss = token_logprobs(model, batch).sum()
            held = sum(kept)
        found.append((torch.autograd.grad(loss, list(model.parameters())), held))
    (plain, much), (again, little) = found
    assert all(map(torch.equal, plain, again))
    assert little < much / 3


def test_the_model_is_as_it_was_afterwards():
    model = qwen()
    forwards = [layer.forward for layer in model.model.layers]
    Hessian(model, PROBE.batches(0, 4), SOME, by_layer=True).gradient()
    assert [layer.forward for layer in model.model.layers] == forwards
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_a_model_whose_layers_are_no_chain_is_refused(monkeypatch):
    model = qwen()
    first = model.model.layers[0]
    monkeypatch.setattr(model.model, "layers", nn.ModuleList([first, first]))  # one layer twice
    with pytest.raises(StudentError, match="not a chain"):
        Hessian(model, PROBE.batches(0, 4), LAST[1:], by_layer=True).gradient()
