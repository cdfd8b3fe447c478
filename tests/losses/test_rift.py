import pytest
import torch
from loss_cases import gradient, make_inputs, rollouts, weights_of

from raygeo.losses import RFT, RIFT

LOGPROBS = torch.tensor([[0.5, 0.25, 0.9], [0.4, 0.1, 0.2]], dtype=torch.float64).log()


def inputs_of(loss):
    inputs = make_inputs(loss, seed=0, lengths=[3, 2], width=3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return type(inputs)(LOGPROBS.clone().requires_grad_(), mask, inputs.weights)


def test_weights():
    table = rollouts(a="cw", b="t")
    assert weights_of(RIFT().select(table)) == {0: 1.0, 1: -0.2}
    assert weights_of(RIFT(negative="paper", lam=0.3).select(table)) == {0: 0.7, 1: 1.0}


@pytest.mark.parametrize(
    ("negative", "term"),
    [("token", 0.4 + 0.1), ("sequence", 0.4 * 0.1), ("geometric", 2 * (0.4 * 0.1) ** 0.5)],
)
def test_value_by_hand(negative, term):
    loss = RIFT(negative=negative, negative_weight=0.5)
    output = loss(inputs_of(loss))
    assert output.total.item() == pytest.approx(-LOGPROBS[0].sum().item() + 0.5 * term, rel=1e-14)
    assert output.metrics["negative_objective"][0].item() == pytest.approx(0.5 * term, rel=1e-14)


def test_paper_value_by_hand():
    loss = RIFT(negative="paper", lam=0.25)
    output = loss(inputs_of(loss))
    wrong = -LOGPROBS[1, :2].sum().item()
    assert output.total.item() == pytest.approx(-0.75 * LOGPROBS[0].sum().item() + wrong, rel=1e-14)
    assert output.metrics["negative_objective"][0].item() == pytest.approx(wrong, rel=1e-14)


@pytest.mark.parametrize(("normalization", "lengths"), [("token", (1, 1)), ("sequence", (3, 2))])
def test_mass_is_the_sum_of_absolute_coefficients(normalization, lengths):
    loss = RIFT(normalization=normalization)
    metrics = loss(inputs_of(loss)).metrics
    negative = 0.2 * (0.4 + 0.1) / lengths[1]
    assert {unit for key, (_, unit) in metrics.items() if key != "nll"} == {normalization}
    assert metrics["negative_mass"][0].item() == pytest.approx(negative, rel=1e-6)
    assert metrics["mass"][0].item() == pytest.approx(3 / lengths[0] + negative, rel=1e-6)


def test_is_rft_without_wrong_rows():
    table = rollouts(a="cc", b="c")
    assert RIFT().select(table).examples == RFT().select(table).examples
    inputs = make_inputs(RFT(), seed=4, lengths=[3, 5])
    torch.testing.assert_close(RIFT()(inputs).total, RFT()(inputs).total)


def test_push_on_wrong_rows_vanishes_with_their_probability():
    loss = RIFT()
    inputs = make_inputs(loss, seed=2, lengths=[3, 3])
    logprobs = inputs.logprobs.detach().clone()
    logprobs[1] = -200.0
    unlikely = type(inputs)(logprobs.requires_grad_(), inputs.mask, inputs.weights)
    assert gradient(loss, unlikely)[1].abs().max() < 1e-80


@pytest.mark.parametrize(
    "wrong", [{"negative": "mean"}, {"negative_weight": 0}, {"negative_weight": -0.2}, {"lam": 1.0}, {"lam": 0.0}]
)
def test_refuses(wrong):
    with pytest.raises(ValueError):
        RIFT(**wrong)
