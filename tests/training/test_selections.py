"""Examples and log-probabilities as workers map them are those that losses select and rollouts hold."""

import numpy as np
import pytest
from tiny import TINY

from checks.equivalence import LOSS_CASES, make_setting
from raygeo.data.behaviour import behaviour_logprobs
from raygeo.errors import DataError
from raygeo.training import selections
from raygeo.training.data import open_data
from raygeo.training.engine import rank_0_first

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_setting(tmp_path_factory.mktemp("selected"), TINY.model_copy(update={"layers": 1}), prompts=6)


@pytest.mark.parametrize("name", ["sft", "awr", "dpo", "off-policy-grpo"])
def test_what_is_stored_is_what_the_loss_selects(setting, monkeypatch, name):
    loss = LOSS_CASES[name]
    expected = loss.select(setting.rollouts).examples
    made = open_data(loss, setting.store, setting.fp32).examples
    monkeypatch.setattr(type(loss), "select", None)  # nor is it called again
    data = open_data(loss, setting.store, setting.fp32)
    for examples in (made, data.examples):
        assert list(examples) == expected
        assert [examples[i] for i in np.arange(len(expected))] == expected
        assert examples[1:4] == expected[1:4]
        assert examples[-1] == expected[-1]
        with pytest.raises(IndexError):
            examples[len(expected)]


def test_texts_are_not_read_again(setting, monkeypatch):
    loss = LOSS_CASES["off-policy-grpo"]
    assert "behaviour" in loss.needs
    expected = behaviour_logprobs(setting.rollouts, open_data(loss, setting.store, setting.fp32).tokens)
    monkeypatch.setattr(type(setting.store), "read_unit", None)
    found = open_data(loss, setting.store, setting.fp32).behaviour
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected)


def test_an_error_of_the_first_rank_is_the_others_error(monkeypatch):
    error = DataError("nothing to learn from")
    monkeypatch.setattr("raygeo.training.engine.rank", lambda: 1)
    monkeypatch.setattr("raygeo.training.engine.broadcast", lambda value: error)
    with pytest.raises(DataError, match="nothing to learn"):
        rank_0_first(lambda: pytest.fail("nothing was stored"))


def test_selections_of_other_settings_lie_apart(setting):
    loss = LOSS_CASES["sft"]
    other = loss.model_copy(update={"prompts": "mixed"})
    assert loss.select(setting.rollouts).examples != other.select(setting.rollouts).examples
    first, second = (selections.open_selection(setting.store, one, setting.fp32.rollouts) for one in (loss, other))
    assert list(first) != list(second)
