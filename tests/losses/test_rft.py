import pytest
from loss_cases import rollouts, weights_of

from raygeo.errors import DataError
from raygeo.losses import RFT, SFT


def test_learns_from_correct_rows():
    assert weights_of(RFT().select(rollouts(a="cwc", b="ww", c="tc"))) == {0: 1.0, 2: 1.0, 6: 1.0}


def test_caps_rows_of_a_prompt():
    selection = RFT(max_per_prompt=2).select(rollouts(a="wcccc", b="c"))
    assert weights_of(selection) == {1: 1.0, 2: 1.0, 5: 1.0}
    assert selection.counts["rows_used"] == 3


def test_mixed_prompts_only():
    assert weights_of(RFT(prompts="mixed").select(rollouts(a="cc", b="wc"))) == {3: 1.0}


def test_is_sft_on_correct_data():
    table = rollouts(a="ccc", b="c")
    assert RFT().select(table).examples == SFT().select(table).examples


def test_no_correct_row():
    with pytest.raises(
        DataError, match=r"RFT finds nothing to learn from in 3 rollouts \(1 truncated, 0 ungraded; of 1 "
    ):
        RFT().select(rollouts(a="wwt"))


@pytest.mark.parametrize("wrong", [{"max_per_prompt": 0}, {"max_per_prompt": 1.5}, {"max_per_prompts": 2}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        RFT(**wrong)
