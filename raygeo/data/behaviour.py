"""Log-probabilities of rollouts under the model that wrote them, as recorded with them."""

import numpy as np
import pyarrow as pa

from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DataError

_NAMED = 3


def behaviour_logprobs(rollouts: pa.Table, tokens: RolloutTokens) -> np.ndarray:
    """Return the table's ``logprobs`` as one flat fp32 array, aligned with ``tokens.completion_offsets``.

    ``tokens`` are those of the same rows, in the same order: the training split's.

    Raises:
        DataError: a row has none, or not one for each of its completion tokens, as when the model that wrote it
            tokenises otherwise than the student.
    """
    column = rollouts["logprobs"].combine_chunks()
    lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != tokens.completion_lengths)
    if len(wrong):
        named = "; ".join(_describe(rollouts, tokens, int(row), int(lengths[row])) for row in wrong[:_NAMED])
        raise DataError(
            f"{len(wrong)} of {len(tokens)} rollouts lack the log-probabilities of the model that wrote them, or hold "
            f"another number of them than completion tokens, end-of-text included: {named}. Record them with the "
            "student's tokeniser when sampling (temperature above 0) and name their field, leave those rows out, or "
            "use losses that do not need them."
        )
    return column.flatten().to_numpy(zero_copy_only=False)


def _describe(rollouts: pa.Table, tokens: RolloutTokens, row: int, length: int) -> str:
    prompt, sample = (rollouts[name][row].as_py() for name in ("prompt_id", "sample"))
    found = "none" if length < 0 else f"{length} for {tokens.completion_lengths[row]} tokens"
    return f"row {row} (prompt {prompt!r}, sample {sample}) has {found}"
