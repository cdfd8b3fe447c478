import math

import pytest
import torch
from curvature_cases import UNEQUAL, completion_logits, dense_ggn, dense_hessian, make_probe
from hessian_eigenthings import HessianOperator, lanczos
from tiny import TinyLM, tiny_qwen
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen3ForCausalLM

from raygeo.errors import StudentError, WorkloadError
from raygeo.geometry.curvature.draws import rademacher
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.operators import GGN, Hessian
from raygeo.models.likelihood import token_logprobs

NAMES = ["embed.weight", "mix.weight", "mix.bias"]
ALL = ["spare", *NAMES]
VOCAB_QWEN = 11
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16,
    "initializer_range": 0.3,
}  # fmt: skip


def qwen(attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Qwen3ForCausalLM:
    model = tiny_qwen(VOCAB_QWEN, 3, **SMALL, attn_implementation=attention)
    return model.to(dtype)


QWEN_NAMES = ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
QWEN_PROBE = make_probe([(2, 1), (3, 7), (1, 2), (2, 5)], VOCAB_QWEN, seed=1)


def identity(operator):
    return operator.matmat(torch.eye(operator.n, dtype=operator.dtype))


@pytest.mark.parametrize("keep_graphs", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_hessian_is_the_dense_hessian_of_the_token_mean(batch_size, keep_graphs):
    model = TinyLM()
    operator = Hessian(model, UNEQUAL.batches(0, batch_size), NAMES, keep_graphs=keep_graphs)
    dense = dense_hessian(model, UNEQUAL, NAMES)
    assert (operator.n, operator.tokens) == (48, 31)
    for _ in range(2):
        assert (identity(operator) - dense).norm() <= 1e-12 * dense.norm()


def test_the_mean_of_batch_means_is_another_matrix():
    model, batches = TinyLM(), UNEQUAL.batches(0, 2)
    dense = dense_hessian(model, UNEQUAL, NAMES)
    average = sum(identity(Hessian(model, [batch], NAMES)) for batch in batches) / len(batches)
    assert (average - dense).norm() > 0.1 * dense.norm()


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_ggn_is_the_dense_ggn_and_positive_semidefinite(batch_size):
    model = TinyLM()
    matrix = identity(GGN(model, UNEQUAL.batches(0, batch_size), NAMES))
    dense = dense_ggn(model, UNEQUAL, NAMES)
    assert (matrix - dense).norm() <= 1e-12 * dense.norm()
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]
    assert (matrix - dense_hessian(model, UNEQUAL, NAMES)).norm() > 0.1 * dense.norm()


def test_ggn_is_the_hessian_where_logits_are_linear():
    model = TinyLM()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    batches = UNEQUAL.batches(0, 2)
    hessian, ggn = (identity(kind(model, batches, ["head.weight"])) for kind in (Hessian, GGN))
    torch.testing.assert_close(hessian, ggn, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", [Hessian, GGN])
def test_operators_are_symmetric_and_ignore_weights_without_influence(kind):
    matrix = identity(kind(TinyLM(), UNEQUAL.batches(0, 2), ALL))
    assert (matrix - matrix.T).norm() <= 1e-13 * matrix.norm()
    assert not matrix[:3].any()
    assert not matrix[:, :3].any()
    assert matrix[3:, 3:].any()


def test_all_parameters_by_default_tied_weights_once():
    operator = Hessian(TinyLM(), UNEQUAL.batches(0, 2))
    assert list(operator.parameters) == ALL
    assert operator.n == 3 + 28 + 16 + 4


def test_gradient_and_nll_match_one_flat_function():
    model = TinyLM()
    operator = Hessian(model, UNEQUAL.batches(0, 2), NAMES)
    logits, targets = completion_logits(model, UNEQUAL)
    loss = -logits.log_softmax(-1)[torch.arange(len(targets)), targets].mean()
    expected = torch.autograd.grad(loss, [dict(model.named_parameters())[name] for name in NAMES])
    assert operator.nll == pytest.approx(float(loss.detach()), rel=1e-13)
    torch.testing.assert_close(operator.gradient(), torch.cat([g.flatten() for g in expected]), rtol=1e-11, atol=1e-15)


def test_a_block_is_its_columns_and_products_can_be_repeated():
    operator = Hessian(TinyLM(), UNEQUAL.batches(0, 2), NAMES)
    block = rademacher(operator.n, 3, torch.Generator().manual_seed(1), dtype=torch.float64)
    together = operator.matmat(block)
    assert torch.equal(together, torch.cat([operator.matmat(column[:, None]) for column in block.T], 1))
    assert torch.equal(together, operator.matmat(block))


def test_flatten_lays_out_parameters_in_order():
    operator = Hessian(TinyLM(), UNEQUAL.batches(0, 6), ["mix.bias", "embed.weight"])
    weight = torch.arange(28.0).view(7, 4)
    assert operator.flatten({"embed.weight": weight}).tolist() == [0.0] * 4 + list(range(28))
    with pytest.raises(StudentError, match=r"mix\.weight"):
        operator.flatten({"mix.weight": torch.zeros(4, 4)})
    with pytest.raises(StudentError, match="shape"):
        operator.flatten({"embed.weight": weight.T})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dense"), [(Hessian, dense_hessian), (GGN, dense_ggn)])
def test_transformer_with_padded_batches_matches_dense(kind, dense):
    # Transformers computes its norms in fp32, which leaves about 1e-7 even in fp64.
    model = qwen()
    operator = kind(model, QWEN_PROBE.batches(0, 2), QWEN_NAMES)
    vectors = rademacher(operator.n, 4, torch.Generator().manual_seed(0), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        expected = dense(model, QWEN_PROBE, QWEN_NAMES) @ vectors
    assert (operator.matmat(vectors) - expected).norm() <= 1e-6 * expected.norm()


def test_fp32_transformer_is_close_to_fp64():
    exact, model = qwen(), qwen(dtype=torch.float32)
    vectors = rademacher(400, 2, torch.Generator().manual_seed(0))
    products = []
    for m in (exact, model):
        operator = Hessian(m, QWEN_PROBE.batches(0, 2), QWEN_NAMES)
        assert operator.n == 400
        products.append(operator.matmat(vectors.to(operator.dtype)).double())
    assert (products[1] - products[0]).norm() <= 1e-5 * products[0].norm()


def test_top_eigenvalues_match_hessian_eigenthings():
    model = qwen()
    (batch,) = QWEN_PROBE.batches(0, 4)
    ours = Hessian(model, [batch], QWEN_NAMES)
    theirs = HessianOperator(
        model,
        [batch],
        lambda m, b: -token_logprobs(m, b).sum() / b.tokens,
        param_filter=lambda name, _: name in QWEN_NAMES,
    )
    start = rademacher(ours.n, 1, torch.Generator().manual_seed(0), dtype=torch.float64)
    found = extreme_eigenvalues(ours.matmat, start, 3, max_steps=60, tolerance=1e-6)
    with sdpa_kernel(SDPBackend.MATH):
        expected = lanczos(theirs, k=3, max_iter=60, which="LA", reorthogonalize=True, seed=1).eigenvalues
    assert sorted(map(float, expected), reverse=True) == pytest.approx(found.top, rel=1e-6)


def test_attention_without_double_backward_is_refused():
    model = qwen()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(StudentError, match=r"'flash_attention_2'.*'sdpa'"):
        Hessian(model, QWEN_PROBE.batches(0, 2), QWEN_NAMES)


def test_fused_attention_is_never_differentiated_twice():
    model, (batch,) = qwen(dtype=torch.float32), QWEN_PROBE.batches(0, 4)
    weights = [dict(model.named_parameters())[name] for name in QWEN_NAMES]
    loss = -token_logprobs(model, batch).sum()  # with the kernel that SDPA chooses by itself
    gradient = torch.autograd.grad(loss, weights, create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative .* is not implemented"):
        torch.autograd.grad(gradient[0].sum(), weights)
    operator = Hessian(model, [batch], QWEN_NAMES)
    assert operator.matmat(torch.ones(operator.n, 1)).any()


def test_eager_attention_gives_the_same_products_to_its_fp32_softmax():
    products = []
    for attention in ("sdpa", "eager"):
        operator = Hessian(qwen(attention), QWEN_PROBE.batches(0, 2), QWEN_NAMES)
        products.append(operator.matmat(torch.ones(operator.n, 1, dtype=torch.float64)))
    assert (products[1] - products[0]).norm() <= 1e-6 * products[0].norm()


@pytest.mark.parametrize("kind", [Hessian, GGN])
def test_shares_of_a_probe_add_up_to_the_whole(kind):
    model, batches = TinyLM(), UNEQUAL.batches(0, 1)
    whole = kind(model, batches, NAMES)
    shares = [kind(model, part, NAMES, tokens=UNEQUAL.tokens) for part in (batches[:1], batches[1:4], batches[4:])]
    assert {share.tokens for share in shares} == {whole.tokens}
    assert sum(share.nll for share in shares) == pytest.approx(whole.nll, rel=1e-14)
    torch.testing.assert_close(sum(share.gradient() for share in shares), whole.gradient(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(sum(map(identity, shares)), identity(whole), rtol=1e-12, atol=1e-14)


def test_training_mode_unknown_and_tied_names_are_refused():
    model, batches = TinyLM(), UNEQUAL.batches(0, 2)
    with pytest.raises(StudentError, match=r"head\.weight"):
        Hessian(model, batches, ["head.weight"])
    with pytest.raises(StudentError, match="no parameters"):
        Hessian(model, batches, [])
    with pytest.raises(StudentError, match="training mode"):
        Hessian(model.train(), batches, NAMES)


def test_a_loss_that_varies_or_is_not_finite_is_refused():
    class Noisy(TinyLM):
        def decode(self, *args, **kwargs):
            output = super().decode(*args, **kwargs)
            self.calls = getattr(self, "calls", 0) + 1
            output.last_hidden_state = output.last_hidden_state * (1 + 1e-9 * self.calls)
            return output

    with pytest.raises(WorkloadError, match="differ"):
        Hessian(Noisy(), UNEQUAL.batches(0, 2), NAMES)
    broken = TinyLM()
    broken.mix.bias.data[0] = math.nan
    with pytest.raises(WorkloadError, match="nan"):
        Hessian(broken, UNEQUAL.batches(0, 2), NAMES)


@pytest.mark.parametrize("keep_graphs", [True, False])
def test_an_operator_is_refused_once_its_weights_have_been_written_to(keep_graphs):
    model = TinyLM()
    operator = Hessian(model, UNEQUAL.batches(0, 2), NAMES, keep_graphs=keep_graphs)
    vector = torch.ones(operator.n, 1, dtype=torch.float64)
    operator.matmat(vector)
    with torch.no_grad():
        model.mix.weight.add_(1.0)
    for ask in (lambda: operator.matmat(vector), lambda: operator.exact(vector), operator.gradient):
        with pytest.raises(WorkloadError, match="written to since this hessian was made"):
            ask()
