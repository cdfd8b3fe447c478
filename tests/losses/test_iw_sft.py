from dataclasses import replace

import pytest
import torch
from loss_cases import gradient, make_inputs, rollouts, weights_of

from raygeo.errors import TrainingError
from raygeo.losses import IWSFT, RFT, SFT

TABLE = rollouts(a="cw", b="wc", c="t")
LEVELS = ["sequence", "token"]


def inputs_of(loss, logprobs, proposal):
    """One row of known log-probabilities under the student and the proposal."""
    inputs = make_inputs(loss, seed=0, lengths=[len(logprobs)], width=len(logprobs))
    key = "reference_logprobs" if loss.proposal == "base" else "behaviour_logprobs"
    student = torch.tensor([logprobs], dtype=torch.float64, requires_grad=True)
    return replace(inputs, logprobs=student, **{key: torch.tensor([proposal], dtype=torch.float64)})


def test_learns_from_the_rows_asked_for():
    assert IWSFT().select(TABLE).examples == RFT().select(TABLE).examples
    assert IWSFT(rows="all").select(TABLE).examples == SFT().select(TABLE).examples
    assert set(weights_of(IWSFT(rows="all").select(TABLE)).values()) == {1.0}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("proposal", ["base", "behaviour"])
def test_is_sft_where_the_student_is_the_proposal(level, proposal):
    loss = IWSFT(level=level, proposal=proposal, tau=3.0)
    inputs = make_inputs(loss, seed=1, lengths=[4, 7, 1])
    q = inputs.logprobs.detach()
    inputs = replace(inputs, **{("reference" if proposal == "base" else "behaviour") + "_logprobs": q})
    output = loss(inputs)
    torch.testing.assert_close(output.total, SFT()(inputs).total, rtol=0, atol=0)
    torch.testing.assert_close(gradient(loss, inputs), gradient(SFT(), inputs), rtol=0, atol=0)
    assert output.metrics["weight"][0].item() == (3 if level == "sequence" else 12)


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        (IWSFT(), [2.0, 2.0]),  # geometric mean of 8 and 1/2
        (IWSFT(tau=2.0), [4.0, 4.0]),
        (IWSFT(tau=2.0, bounds=(0.5, 3.0)), [3.0, 3.0]),
        (IWSFT(level="token"), [1.8, 0.5]),
        (IWSFT(level="token", bounds=(0.7, 9.0)), [8.0, 0.7]),
        (IWSFT(level="token", tau=2.0, bounds=(0.0, 50.0)), [50.0, 0.25]),
    ],
)
def test_weights_by_hand(loss, weights):
    p, q = torch.tensor([0.4, 0.2]).double().log(), torch.tensor([0.05, 0.4]).double().log()
    inputs = inputs_of(loss, p.tolist(), q.tolist())
    expected = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(-gradient(loss, inputs)[0], expected, rtol=1e-12, atol=0)
    output = loss(inputs)
    torch.testing.assert_close(output.total, -(expected * p).sum(), rtol=1e-12, atol=0)
    mean = expected.mean() if loss.level == "token" else expected[0]
    count = 2 if loss.level == "token" else 1
    torch.testing.assert_close(output.metrics["weight"][0] / count, mean, rtol=1e-12, atol=0)
    assert output.metrics["weight"][1] == loss.level


@pytest.mark.parametrize(("level", "bound"), [("sequence", 16.0), ("token", 1.8)])
def test_a_token_the_proposal_excludes_gives_the_largest_weight(level, bound):
    inputs = inputs_of(IWSFT(), [-0.1, -0.2], [-3000.0, -3000.0])
    assert -gradient(IWSFT(level=level), inputs)[0] == pytest.approx([bound, bound])


def test_the_weight_carries_no_gradient():
    """The total's slope with the weight held, by central differences."""
    loss = IWSFT()
    inputs = make_inputs(loss, seed=3, lengths=[5, 3])
    weights = -gradient(loss, inputs)
    step = torch.zeros_like(inputs.logprobs)
    step[0, inputs.mask[0].nonzero()[0]] = 1e-6
    held = [-(weights * (inputs.logprobs.detach() + sign * step)).sum() for sign in (1, -1)]
    slope = (held[0] - held[1]) / 2e-6
    torch.testing.assert_close((gradient(loss, inputs) * step).sum() / 1e-6, slope, rtol=1e-7, atol=0)


def test_needs_the_proposal():
    assert IWSFT().needs == {"reference"}
    assert IWSFT(proposal="behaviour").needs == {"behaviour"}
    inputs = make_inputs(SFT(), seed=0, lengths=[2, 2])
    with pytest.raises(TrainingError, match="of the base"):
        IWSFT()(inputs)
    with pytest.raises(TrainingError, match="that wrote the rollouts"):
        IWSFT(proposal="behaviour")(inputs)


@pytest.mark.parametrize(
    "wrong",
    [{"tau": 0.0}, {"bounds": (2.0, 1.0)}, {"bounds": (-1.0, 1.0)}, {"bounds": (1.0, 1.0)}, {"proposal": "teacher"}],
)
def test_refuses(wrong):
    with pytest.raises(ValueError):
        IWSFT(**wrong)
