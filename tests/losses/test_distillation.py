"""Divergences from a teacher's likeliest tokens: dense fp64, torch and TRL as oracles."""

from dataclasses import replace

import pytest
import torch
from loss_cases import make_inputs, rollouts, weights_of
from torch.distributions import Categorical, kl_divergence
from trl.experimental.gkd import GKDTrainer

from raygeo.errors import TrainingError
from raygeo.losses import KDJSD, KDForward, KDReverse
from raygeo.models.likelihood import TokenLogits, TopLogprobs

VOCABULARY = 13
LOSSES = {0.0: KDForward(), 0.3: KDJSD(beta=0.3), 0.5: KDJSD(), 1.0: KDReverse()}


def tokens(seed, k, count=40, dtype=torch.float64, scale=2.0):
    """Random laws of student and teacher, k likeliest tokens kept of the teacher's; and the teacher's logits."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = scale * torch.randn(2, count, VOCABULARY, generator=generator, dtype=torch.float64)
    logprobs = teacher.log_softmax(-1)
    top, ids = logprobs.topk(k)
    rest = logprobs.exp().scatter(-1, ids, 0.0).sum(-1)
    kept = TopLogprobs(ids, top.to(dtype), rest.to(dtype))
    return TokenLogits(logits.to(dtype).requires_grad_(), torch.zeros(count, dtype=torch.int64), teacher=kept), teacher


def divergence(loss, given):
    return loss.token_terms(given)["divergence"]


def lumped(logits, ids):
    """A law with all tokens but ``ids`` put together, written out token by token."""
    law, rows = logits.double().softmax(-1), []
    for row, kept in zip(law, ids, strict=True):
        own = [row[i] for i in kept.tolist()]
        rows.append(torch.stack([*own, sum(row[i] for i in range(len(row)) if i not in kept.tolist())]))
    return torch.stack(rows)


@pytest.mark.parametrize("beta", LOSSES)
def test_with_the_whole_vocabulary_it_is_trls_in_value_and_gradient(beta):
    given, teacher = tokens(seed=0, k=VOCABULARY)
    found = divergence(LOSSES[beta], given).sum()
    [slope] = torch.autograd.grad(found, given.logits)
    student = given.logits.detach().requires_grad_()
    expected = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
    [wanted] = torch.autograd.grad(expected, student)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [1, 4, 12])
@pytest.mark.parametrize("beta", LOSSES)
def test_with_few_tokens_it_is_that_of_laws_with_all_others_lumped_together(beta, k):
    given, teacher = tokens(seed=1, k=k)
    p, q = (lumped(logits.detach(), given.teacher.ids) for logits in (teacher, given.logits))
    m = Categorical(beta * p + (1 - beta) * q)
    p, q = Categorical(p), Categorical(q)
    expected = {0.0: lambda: kl_divergence(p, q), 1.0: lambda: kl_divergence(q, p)}.get(
        beta, lambda: beta * kl_divergence(p, m) + (1 - beta) * kl_divergence(q, m)
    )()
    torch.testing.assert_close(divergence(LOSSES[beta], given), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("beta", LOSSES)
def test_it_grows_with_the_tokens_kept_and_never_exceeds_the_whole(beta):
    found = torch.stack([divergence(LOSSES[beta], tokens(seed=2, k=k)[0]) for k in range(1, VOCABULARY + 1)])
    assert (found.diff(dim=0) > -1e-12).all()
    assert (found[0] < found[-1] - 1e-3).any()


@pytest.mark.parametrize("beta", LOSSES)
def test_it_and_its_gradient_vanish_at_the_teacher(beta):
    given, teacher = tokens(seed=3, k=4)
    given = replace(given, logits=(teacher + 1.5).requires_grad_())
    found = divergence(LOSSES[beta], given)
    assert found.abs().max() < 1e-12
    assert torch.autograd.grad(found.sum(), given.logits)[0].abs().max() < 1e-12


def test_the_forward_gradient_is_the_students_law_less_the_teachers_the_tail_as_the_student_divides_it():
    given, _ = tokens(seed=4, k=4)
    [slope] = torch.autograd.grad(divergence(KDForward(), given).sum(), given.logits)
    q = given.logits.detach().softmax(-1)
    ids, top, tail = given.teacher
    outside = q.scatter(-1, ids, 0.0)
    label = (tail[:, None] * outside / outside.sum(-1, keepdim=True)).scatter(-1, ids, top.exp())
    torch.testing.assert_close(slope, q - label, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.type)
def test_a_tail_of_nothing_and_far_laws_stay_finite_in_fp32(loss):
    given, _ = tokens(seed=5, k=4, dtype=torch.float32, scale=60.0)
    given = replace(given, teacher=given.teacher._replace(tail=torch.zeros(40)))
    found = divergence(loss, given)
    [slope] = torch.autograd.grad(found.sum(), given.logits)
    assert torch.isfinite(found).all()
    assert torch.isfinite(slope).all()


def test_rows_and_weights_count_as_in_other_losses_on_rollouts():
    table = rollouts(a="cw", b="w")
    assert weights_of(KDForward().select(table)) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert weights_of(KDForward(rows="correct").select(table)) == {0: 1.0}
    inputs = make_inputs(KDReverse(), seed=0, lengths=[2, 5])
    inputs = replace(inputs, weights=torch.tensor([1.0, 0.25], dtype=torch.float64))
    each = [inputs.terms["divergence"][row][inputs.mask[row]].sum() for row in range(2)]
    output = KDReverse()(inputs)
    torch.testing.assert_close(output.total, each[0] + 0.25 * each[1])
    torch.testing.assert_close(output.metrics["divergence"][0], each[0] + each[1])


def test_says_what_is_missing():
    given, _ = tokens(seed=0, k=2)
    with pytest.raises(TrainingError, match="no likeliest tokens of a teacher"):
        KDForward().token_terms(replace(given, teacher=None))
    with pytest.raises(TrainingError, match="no divergence"):
        KDForward()(replace(make_inputs(KDForward(), seed=0, lengths=[2]), terms={}))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_of_the_mixture_are_losses_of_their_own(beta):
    with pytest.raises(ValueError):
        KDJSD(beta=beta)
