import pytest
from loss_cases import EVERY_LOSS, rollouts

from raygeo.errors import DataError
from raygeo.losses import DPO, RFT, RIFT, SFT
from raygeo.losses.registry import name_of
from raygeo.losses.selection import group_rollouts
from raygeo.tables import to_arrow

TABLE = rollouts(a="cwtw", b="cc", c="w?", d="tt", e="w")


def test_counts():
    usable = group_rollouts(TABLE)
    assert usable.counts == {
        "rows_seen": 11,
        "truncated_dropped": 3,
        "ungraded_dropped": 1,
        "prompts": 4,
        "mixed_prompts": 1,
        "all_correct_prompts": 1,
        "all_wrong_prompts": 2,
    }
    assert [group.rows for group in usable.groups] == [(0, 1, 3), (4, 5), (6,), (10,)]


@pytest.mark.parametrize(
    ("loss", "used", "correct", "negative"), [(SFT(), 7, 3, 0), (RFT(), 3, 3, 0), (RIFT(), 7, 3, 4), (DPO(), 3, 1, 0)]
)
def test_counts_of_used_rows(loss, used, correct, negative):
    counts = loss.select(TABLE).counts
    assert counts["rows_used"] == used
    assert counts["correct_rows"] == correct
    assert counts["wrong_rows"] == used - correct
    assert counts["negative_rows"] == negative


def test_a_truncated_row_does_not_make_a_prompt_mixed():
    assert group_rollouts(rollouts(a="ct")).counts["mixed_prompts"] == 0


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_scattered_prompts_are_gathered_and_examples_ordered(loss):
    rows = [
        {"prompt_id": p, "correct": c, "truncated": False, "source": "student"}
        for p, c in zip("abab", [True, False, False, True], strict=True)
    ]
    selection = loss.select(to_arrow("rollouts", rows))
    firsts = [example.rows[0] for example in selection.examples]
    assert firsts == sorted(firsts)
    assert selection.counts["mixed_prompts"] == 2


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_selecting_twice_gives_the_same(loss):
    assert loss.select(TABLE) == loss.select(TABLE)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
@pytest.mark.parametrize(
    "table", [rollouts(), rollouts(a="tt"), rollouts(a="??")], ids=["empty", "truncated", "ungraded"]
)
def test_nothing_usable(loss, table):
    with pytest.raises(DataError, match="finds nothing to learn from"):
        loss.select(table)


def test_refuses_rows_without_prompt():
    with pytest.raises(DataError, match="row 1 of the rollouts has no prompt_id"):
        SFT().select(to_arrow("rollouts", [{"prompt_id": "a", "correct": True}, {"correct": True}]))
