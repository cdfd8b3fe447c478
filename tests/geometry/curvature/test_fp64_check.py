"""The truth here is fp64 throughout: transformers narrows norms and rotary angles to fp32 even in fp64 models."""

import numpy as np
import pytest
import torch
from curvature_cases import make_probe
from tiny import tiny_qwen
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, Qwen3RotaryEmbedding

from raygeo.geometry.curvature.draws import named_generator, rademacher
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues, rayleigh
from raygeo.geometry.curvature.operators import GGN, Hessian

WORDS = 31
NAMES = ["model.layers.0.self_attn.k_proj.weight", "model.norm.weight"]
LENGTHS = [(2, 1), (3, 9), (1, 2), (2, 12), (4, 3)]


def student(seed, width=16):
    return tiny_qwen(
        WORDS, seed=seed, hidden_size=width, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        intermediate_size=2 * width, initializer_range=0.3,
    )  # fmt: skip


def wide_norm(norm, x):
    return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def wide_rotary(rotary, x, position_ids):
    angles = (position_ids[..., None].double() * rotary.inv_freq.double()).repeat(1, 1, 2)
    return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling


def dense(model, kind, probe, monkeypatch):
    """The operator's matrix over ``NAMES``, of a model all of which stays in fp64."""
    with monkeypatch.context() as patched:
        patched.setattr(Qwen3RMSNorm, "forward", wide_norm)
        patched.setattr(Qwen3RotaryEmbedding, "forward", wide_rotary)
        operator = kind(student_like(model).double(), probe.batches(0, 9), NAMES)
        return operator.matmat(torch.eye(operator.n, dtype=torch.float64))


def student_like(model):
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("keep_graphs", [True, False])
def test_exact_products_are_fp64_throughout_and_leave_the_operator_as_it_was(kind, keep_graphs, monkeypatch):
    model, probe = student(0), make_probe(LENGTHS, WORDS)
    batches = probe.batches(0, 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    operator = kind(model, batches, NAMES, keep_graphs=keep_graphs)
    vectors = rademacher(operator.n, 3, named_generator("check"))
    before = operator.matmat(vectors)
    found = operator.exact(vectors)
    assert found.dtype == torch.float64
    expected = dense(model, kind, probe, monkeypatch) @ vectors.double()
    rounding = (expected - before.double()).norm() / expected.norm()
    assert rounding > 1e-8
    assert (expected - found).norm() / expected.norm() < 1e-13
    assert torch.equal(operator.matmat(vectors), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


def test_exact_products_of_a_share_are_its_term():
    model, batches = student(0), make_probe(LENGTHS, WORDS).batches(0, 2)
    tokens = sum(batch.tokens for batch in batches)
    whole = Hessian(model, batches, NAMES)
    shares = [Hessian(model, part, NAMES, tokens=tokens) for part in (batches[:1], batches[1:])]
    vectors = rademacher(whole.n, 2, named_generator("check"))
    torch.testing.assert_close(
        sum(share.exact(vectors) for share in shares), whole.exact(vectors), rtol=1e-12, atol=1e-14
    )


@pytest.mark.slow
def test_the_stated_error_covers_the_eigenvalues_of_fp64(monkeypatch):
    covered, blind, distances = [], [], []
    for seed in range(8):
        kind, width = (Hessian, GGN)[seed % 2], (16, 24)[seed // 4]
        model, probe = student(seed, width), make_probe(LENGTHS, WORDS, seed=seed)
        truth = torch.linalg.eigvalsh(dense(model, kind, probe, monkeypatch)).numpy()
        operator = kind(model, probe.batches(0, 3), NAMES)
        start = rademacher(operator.n, 1, named_generator("check", seed))
        found = extreme_eigenvalues(operator.matmat, start, 3, max_steps=60, tolerance=1e-6)
        values, errors = rayleigh(operator.exact, found.vectors)
        distance = np.abs(values - truth[::-1][:3])
        covered += (distance <= errors).tolist()
        distances += (distance / truth[-1]).tolist()
        blind += (np.abs(found.top - truth[::-1][:3]) <= found.top_residuals).tolist()
        assert (errors < 1e-4 * truth[-1]).all()
    assert np.mean(covered) >= 0.95
    assert np.max(distances) < 1e-9
    assert np.mean(blind) < 0.7  # the recurrence does not see how products are rounded
