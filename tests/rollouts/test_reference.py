import numpy as np
import pytest
import torch
from student_cases import draw_rollouts, save_tiny_student

from raygeo.cluster.fanout import run_workload
from raygeo.errors import DataError
from raygeo.rollouts.reference import ReferenceLogprobs, ReferenceSettings, open_reference, save_reference
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.students.encoding import collate
from raygeo.students.likelihood import token_logprobs
from raygeo.students.loading import load_student


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    student = save_tiny_student(root / "student")
    _, tokenizer = load_student(student)
    table = draw_rollouts(5)
    rows = [(row["prompt"], row["completion"], True) for row in table.to_pylist()]
    tokens = RolloutTokens.encode(tokenizer, rows)
    (root / "tokens").mkdir()
    tokens.save(root / "tokens")
    return str(student), str(root / "tokens"), tokens, tokenizer.pad_token_id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_gets_the_log_probabilities_of_the_base_in_the_dtype_of_training(inputs, store, tmp_path, dtype):
    student, folder, tokens, pad_id = inputs
    workload = ReferenceLogprobs(ReferenceSettings(batch_size=3, rows_per_task=7), student, folder, "k", dtype)
    result = run_workload(workload, store)
    table = store.publish("reference", reversed(result.keys))
    save_reference(table, tokens, tmp_path)
    flat = open_reference(tmp_path)
    model, _ = load_student(student, dtype=dtype)
    for row in range(len(tokens)):
        batch = collate([tokens[row]], pad_id)
        with torch.no_grad():
            alone = token_logprobs(model, batch)[batch.mask].numpy()
        start, end = tokens.completion_offsets[row : row + 2]
        assert np.allclose(flat[start:end], alone, atol=1e-5 if dtype == torch.float32 else 0.05)
    exact = ReferenceLogprobs(ReferenceSettings(batch_size=3, rows_per_task=7), student, folder, "k")
    shared = {t.key for t in workload.tasks()} & {t.key for t in exact.tasks()}
    assert bool(shared) == (dtype == torch.float32)


def test_a_missing_row_is_refused(inputs, store, tmp_path):
    student, folder, tokens, _ = inputs
    result = run_workload(ReferenceLogprobs(ReferenceSettings(rows_per_task=7), student, folder, "k"), store)
    with pytest.raises(DataError, match="do not match the 20 tokenised rollouts"):
        save_reference(store.publish("reference", result.keys[1:]), tokens, tmp_path)
