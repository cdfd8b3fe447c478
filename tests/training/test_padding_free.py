"""Every loss of rows that lie one behind the other is that of padded rows, and so is its gradient."""

import math

import pytest
import torch
from tiny import TINY

from checks.equivalence import LOSS_CASES, make_setting
from raygeo.losses.base import Loss
from raygeo.losses.batches import micro_batch, micro_loss, mismatched_log_ratio
from raygeo.models.likelihood import Likelihood
from raygeo.models.loading import load_model
from raygeo.training.data import open_data

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_setting(tmp_path_factory.mktemp("packed"), TINY.model_copy(update={"layers": 1}), prompts=8)


@pytest.fixture(scope="module")
def moved(setting):
    """The student a little away from the base, so that no loss is at a point where it is trivial."""
    model = load_model(setting.fp32.student)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def computed(model, loss, data, padding_free):
    """Loss, metrics and the gradient of every weight."""
    terms = loss.token_terms if type(loss).token_terms is not Loss.token_terms else None
    student = Likelihood(model, terms, padding_free=padding_free)
    examples = torch.arange(min(4, len(data.examples))).numpy()
    baseline = None
    if "mismatched" in loss.needs:
        rows = len(data.rows(examples))
        baseline = (mismatched_log_ratio(student, data, examples, "cpu") / rows).float()
    output = micro_loss(student, loss, micro_batch(data, loss, examples, 0, 3, "cpu"), baseline)
    model.zero_grad()
    output.total.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.total.detach(), {name: value for name, (value, _) in output.metrics.items()}, gradient


@pytest.mark.parametrize("name", [name for name in LOSS_CASES if name != "otr"])
def test_the_loss_and_its_gradient_are_those_of_padded_rows(setting, moved, name):
    loss = LOSS_CASES[name]
    data = open_data(loss, setting.store, setting.fp32)
    padded, packed = (computed(moved, loss, data, free) for free in (False, True))
    assert len({len(data.tokens[row]) for row in data.rows(range(4))}) > 1
    scale = max(float(value.abs().max()) for value in padded[2].values())
    assert scale > 0
    torch.testing.assert_close(packed[0], padded[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(packed[1], padded[1], rtol=2e-5, atol=1e-4)
    torch.testing.assert_close(packed[2], padded[2], rtol=1e-3, atol=2e-5 * max(1.0, scale))


def test_dpo_starts_at_ln_2(setting):
    loss = LOSS_CASES["dpo"]
    data = open_data(loss, setting.store, setting.fp32)
    total, metrics, _ = computed(load_model(setting.fp32.student), loss, data, True)
    assert float(total) / 4 == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics["margin"]) == pytest.approx(0, abs=1e-4)
