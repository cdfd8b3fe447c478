import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raygeo.data.behaviour import behaviour_logprobs
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DataError
from raygeo.generation.renderer import PlainRenderer
from raygeo.tables import to_arrow
from raygeo.toy.word_problems import word_tokenizer

LOGPROBS = [[-0.5, -1.0, -0.25], [-0.125], [-2.0, -3.0], [-4.0, -0.0625]]
COMPLETIONS = ["12", "", "1", "23"]  # the last one was cut, so without end-of-text
ENDED = [True, True, True, False]


def table(logprobs=LOGPROBS, splits=("train",) * 4):
    rows = zip(logprobs, COMPLETIONS, ENDED, splits, strict=True)
    return to_arrow(
        "rollouts",
        [
            {
                "prompt_id": f"p{i}",
                "prompt": "how many ?",
                "sample": i,
                "completion": completion,
                "truncated": not ended,
                "split": split,
                "logprobs": numbers,
            }
            for i, (numbers, completion, ended, split) in enumerate(rows)
        ],
    )


def tokens_of(rollouts):
    rows = [(row["prompt"], row["completion"], not row["truncated"]) for row in rollouts.to_pylist()]
    return RolloutTokens.encode(PlainRenderer(word_tokenizer()), rows)


def test_numbers_follow_the_tokens_of_the_rows_in_order():
    rollouts = table()
    tokens = tokens_of(rollouts)
    flat = behaviour_logprobs(rollouts, tokens)
    assert flat.dtype == np.float32
    for row, expected in enumerate(LOGPROBS):
        assert flat[tokens.completion_offsets[row] : tokens.completion_offsets[row + 1]].tolist() == expected
    assert len(flat) == tokens.completion_offsets[-1]


def test_rows_of_the_training_split_alone():
    rollouts = table([LOGPROBS[0], None, *LOGPROBS[2:]], splits=("train", "heldout", "train", "train"))
    rollouts = pa.concat_tables([rollouts.slice(0, 3), rollouts.slice(3)])  # several chunks
    train = rollouts.filter(pc.equal(rollouts["split"], "train"))
    flat = behaviour_logprobs(train, tokens_of(train))
    assert flat.tolist() == [*LOGPROBS[0], *LOGPROBS[2], *LOGPROBS[3]]


def test_missing_and_misfitting_rows_are_named():
    rollouts = table([LOGPROBS[0], None, LOGPROBS[2][:1], [*LOGPROBS[3], -1.0]])
    with pytest.raises(DataError) as raised:
        behaviour_logprobs(rollouts, tokens_of(rollouts))
    message = str(raised.value)
    assert message.startswith("3 of 4 rollouts lack the log-probabilities")
    assert "row 1 (prompt 'p1', sample 1) has none" in message
    assert "row 2 (prompt 'p2', sample 2) has 1 for 2 tokens" in message
    assert "row 3 (prompt 'p3', sample 3) has 3 for 2 tokens" in message


def test_a_table_without_any_is_refused():
    rollouts = table([None] * 4)
    with pytest.raises(DataError, match=r"4 of 4 rollouts lack .*row 0 .*row 1 .*row 2 .*has none"):
        behaviour_logprobs(rollouts, tokens_of(rollouts))


def test_a_store_from_before_the_column_reads_as_null(store):
    old = table().drop_columns("logprobs")
    store.write_unit("old", {"rollouts": old})
    rollouts = store.publish("rollouts", ["old"])
    assert rollouts["logprobs"].null_count == 4
    assert rollouts.drop_columns("logprobs").equals(old)
    assert store.table("rollouts").equals(rollouts)
