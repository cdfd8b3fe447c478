import numpy as np
import pytest

from raygeo.data.mismatched import mismatch, save_mismatched
from raygeo.data.tokens import RolloutTokens, write_tokens
from raygeo.errors import DataError
from raygeo.models.batches import TokenSequence


@pytest.fixture
def tokens():
    lengths = [(3, 4), (2, 2), (5, 1), (1, 6), (4, 3)]
    rng = np.random.default_rng(0)
    return RolloutTokens.of([TokenSequence(rng.integers(0, 99, p + c), p) for p, c in lengths])


@pytest.mark.parametrize("size", [1, 3, 100])
def test_files_written_in_blocks_are_those_of_numpy(tokens, tmp_path, size):
    ids = tokens.ids
    write_tokens(tmp_path, tokens.lengths, tokens.prompt_lengths, [ids[i : i + size] for i in range(0, len(ids), size)])
    for name in ("ids", "offsets", "prompt_lengths"):
        np.save(tmp_path / "whole.npy", getattr(tokens, name))
        assert (tmp_path / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert RolloutTokens.open(tmp_path)[3].ids.tolist() == tokens[3].ids.tolist()


def test_blocks_that_are_not_the_sequences_are_refused(tokens, tmp_path):
    with pytest.raises(DataError, match="30 token ids were written for sequences of 31"):
        write_tokens(tmp_path, tokens.lengths, tokens.prompt_lengths, [tokens.ids[1:]])


@pytest.mark.parametrize("prompts", ["aabba", "abcde", "aaaab", "abbbb"])
@pytest.mark.parametrize("limit", [None, 6])
def test_mismatched_rows_are_the_next_of_another_prompt(tokens, tmp_path, prompts, limit):
    save_mismatched(tokens, list(prompts), limit, tmp_path)
    for found in (mismatch(tokens, list(prompts), limit), RolloutTokens.open(tmp_path)):
        for row, prompt in enumerate(prompts):
            other = next(o % 5 for o in range(row + 1, row + 5) if prompts[o % 5] != prompt)
            own, foreign = tokens[row], tokens[other]
            expected = [*own.ids[: own.prompt_length], *foreign.ids[foreign.prompt_length :]][:limit]
            assert found[row].ids.tolist() == expected
            assert found[row].prompt_length == own.prompt_length
    with pytest.raises(DataError, match="all 5 rollouts answer one prompt"):
        mismatch(tokens, ["a"] * 5, limit)
