from collections import Counter

import pytest

from raygeo.data.interventions import set_negative_share, shuffle_rewards
from raygeo.errors import DataError
from raygeo.tables import to_arrow


def table(prompts=12, samples=4, wrong=lambda p, s: s < p % 4):
    """Prompts with 0 to 3 wrong rollouts of 4, the last two prompts held out, and a truncated row for each prompt."""
    rows = [
        {
            "prompt_id": f"p{p}",
            "prompt": f"prompt {p}",
            "sample": s,
            "completion": f"c{p}.{s}",
            "reward": 0.0 if wrong(p, s) else 1.0 + p,
            "correct": not wrong(p, s),
            "truncated": s == samples,
            "split": "heldout" if p >= prompts - 2 else "train",
        }
        for s in range(samples + 1)
        for p in range(prompts)
    ]
    return to_arrow("rollouts", rows)


def usable(rollouts):
    return [row for row in rollouts.to_pylist() if row["split"] == "train" and not row["truncated"]]


def share(rollouts):
    rows = usable(rollouts)
    return sum(not row["correct"] for row in rows) / len(rows)


@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.25, 0.35, 0.5, 0.75, 1.0])
def test_the_share_of_wrong_rows_is_met_to_half_a_row_by_dropping_one_verdict(wanted):
    before = table()
    after = set_negative_share(before, wanted, seed=0)
    kept = usable(after)
    assert abs(share(after) - wanted) <= 0.5 / len(kept)
    counts = Counter(row["correct"] for row in usable(before)), Counter(row["correct"] for row in kept)
    dropped = wanted > share(before)
    assert counts[1][not dropped] == counts[0][not dropped]
    assert counts[1][dropped] < counts[0][dropped]


def test_other_rows_and_their_order_stay():
    before = table()
    after = set_negative_share(before, 0.1, seed=0)
    kept = {(row["prompt_id"], row["sample"]) for row in after.to_pylist()}
    rest = [r for r in before.to_pylist() if (r["prompt_id"], r["sample"]) in kept]
    assert after.to_pylist() == rest
    untouched = [r for r in before.to_pylist() if r["split"] == "heldout" or r["truncated"]]
    assert [r for r in rest if r["split"] == "heldout" or r["truncated"]] == untouched


def test_prompts_lose_their_spare_rows_first_then_their_mixture_and_are_lost_last():
    # p0: four wrong, p1: one right and three wrong, p2 to p5: all right.
    def wrong(p, s):
        return p == 0 or (p == 1 and s > 0)

    rollouts = table(prompts=8, wrong=wrong)
    prompts = {
        wanted: {r["prompt_id"] for r in usable(set_negative_share(rollouts, wanted, seed=3)) if not r["correct"]}
        for wanted in (2 / 19, 1 / 18)
    }
    assert prompts == {2 / 19: {"p0", "p1"}, 1 / 18: {"p0"}}


def test_a_share_that_is_met_changes_nothing():
    rollouts = table()
    assert set_negative_share(rollouts, share(rollouts), seed=0) is rollouts


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [(lambda p, s: False, 0.1), (lambda p, s: True, 0.9), (lambda p, s: True, 0.0), (lambda p, s: p == s == 0, 0.99)],
)
def test_an_impossible_share_is_refused_with_what_there_is(wrong, wanted):
    with pytest.raises(
        DataError, match=rf"negative_share {wanted:g} cannot .* 40 usable training rollouts \d+ are wrong"
    ):
        set_negative_share(table(wrong=wrong), wanted, seed=0)


def test_shuffling_permutes_verdicts_with_their_rewards_over_usable_training_rows():
    before, after = table(), shuffle_rewards(table(), seed=0)
    assert after.schema == before.schema
    assert after.drop_columns(["correct", "reward"]) == before.drop_columns(["correct", "reward"])
    pairs = [Counter((r["correct"], r["reward"]) for r in usable(t)) for t in (before, after)]
    assert pairs[0] == pairs[1]
    moved = [a["correct"] != b["correct"] for a, b in zip(usable(before), usable(after), strict=True)]
    expected = 2 * share(before) * (1 - share(before))
    assert sum(moved) / len(moved) == pytest.approx(expected, abs=0.2)
    for a, b in zip(before.to_pylist(), after.to_pylist(), strict=True):
        if a["split"] == "heldout" or a["truncated"]:
            assert a == b


def test_a_shuffled_verdict_says_nothing_of_the_row_it_stands_on():
    rollouts = table(prompts=402, samples=5, wrong=lambda p, s: s < 2)
    after = usable(shuffle_rewards(rollouts, seed=1))
    rates = [sum(r["correct"] for r in after if r["sample"] == s) / 400 for s in range(5)]
    assert rates == pytest.approx([0.6] * 5, abs=5 * (0.6 * 0.4 / 400) ** 0.5)


@pytest.mark.parametrize("change", [lambda t, seed: set_negative_share(t, 0.2, seed), shuffle_rewards])
def test_what_is_drawn_depends_on_the_seed_and_not_on_the_order_of_rows(change):
    rollouts = table()
    turned = rollouts.take(list(reversed(range(rollouts.num_rows))))
    first = {(r["prompt_id"], r["sample"]): r for r in change(rollouts, 0).to_pylist()}
    assert {(r["prompt_id"], r["sample"]): r for r in change(turned, 0).to_pylist()} == first
    assert {(r["prompt_id"], r["sample"]): r for r in change(rollouts, 1).to_pylist()} != first


def paired(pairs=40, loose=0, loose_correct=True):
    """Prompts with one preference pair each, and prompts with one rollout that belongs to none."""
    rows = [
        {"prompt_id": f"p{p:02}", "prompt": f"p{p}", "sample": side, "completion": f"c{p}.{side}", "reward": 1.0 - side,
         "correct": side == 0, "truncated": False, "split": "train", "pair": f"pair {p}"}
        for p in range(pairs) for side in (0, 1)
    ]  # fmt: skip
    rows += [
        {"prompt_id": f"l{p:02}", "prompt": f"l{p}", "sample": 0, "completion": "c", "reward": float(loose_correct),
         "correct": loose_correct, "truncated": False, "split": "train", "pair": None}
        for p in range(loose)
    ]  # fmt: skip
    return to_arrow("rollouts", rows)


def verdicts(rollouts):
    """The verdicts of each pair."""
    found = {}
    for row in rollouts.to_pylist():
        if row["pair"] is not None:
            found.setdefault(row["pair"], []).append(row["correct"])
    return found


def test_shuffling_turns_half_of_the_pairs_whole():
    rollouts = paired(40, loose=10)
    after = shuffle_rewards(rollouts, seed=0)
    assert all(sorted(sides) == [False, True] for sides in verdicts(after).values())
    assert sum(sides == [False, True] for sides in verdicts(after).values()) == 20
    assert all(row["reward"] == float(row["correct"]) for row in after.to_pylist())
    assert verdicts(shuffle_rewards(rollouts, seed=1)) != verdicts(after)


@pytest.mark.parametrize(
    ("loose", "right", "wanted"), [(40, True, 0.1), (40, True, 0.4), (40, False, 0.55), (40, False, 0.9)]
)
def test_a_share_is_met_without_half_a_pair(loose, right, wanted):
    before = paired(40, loose, right)
    after = set_negative_share(before, wanted, seed=0)
    assert abs(share(after) - wanted) <= 1 / after.num_rows
    assert all(sorted(sides) == [False, True] for sides in verdicts(after).values())
    assert after.num_rows < before.num_rows


def test_pairs_alone_have_one_share():
    assert set_negative_share(paired(), 0.5, seed=0).num_rows == 80
    with pytest.raises(DataError, match="80 are pairs of a right and a wrong one, which stay whole"):
        set_negative_share(paired(), 0.25, seed=0)
