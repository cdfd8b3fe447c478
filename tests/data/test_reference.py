from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from study_cases import draw_rollouts
from tiny import save_tiny_student

from raygeo.cluster.execution import run_workload
from raygeo.data.reference import (
    REFERENCE_STATES,
    ReferenceLogprobs,
    ReferenceSettings,
    ReferenceStates,
    open_reference,
    open_reference_states,
    save_reference,
)
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DataError
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.batches import collate
from raygeo.models.likelihood import Likelihood, token_logprobs
from raygeo.models.loading import load_student
from raygeo.store import Store


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    student = save_tiny_student(root / "student")
    _, tokenizer = load_student(student)
    table = draw_rollouts(5)
    rows = [(row["prompt"], row["completion"], True) for row in table.to_pylist()]
    tokens = RolloutTokens.encode(PlainRenderer(tokenizer), rows)
    (root / "tokens").mkdir()
    tokens.save(root / "tokens")
    return str(student), str(root / "tokens"), tokens, tokenizer.pad_token_id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_gets_the_log_probabilities_of_the_base_in_the_dtype_of_training(inputs, store, tmp_path, dtype):
    student, folder, tokens, pad_id = inputs
    workload = ReferenceLogprobs(ReferenceSettings(batch_size=3, rows_per_task=7), student, folder, "k", dtype)
    result = run_workload(workload, store)
    table = store.publish("reference", reversed(result.keys))
    save_reference([table.slice(9), table.slice(0, 9)], tokens, tmp_path)
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
        save_reference([store.publish("reference", result.keys[1:])], tokens, tmp_path)
    whole = store.publish("reference", result.keys)
    for wrong in (whole, whole.set_column(0, "row", pa.chunked_array([np.arange(1, 21)]))):
        with pytest.raises(DataError, match="do not match"):
            save_reference([whole.slice(0, 1), wrong], tokens, tmp_path)


def states_folder(inputs, store, dtype=torch.float32, rows_per_task=7):
    """Run the workload, the last slice first, and return its folder."""
    student, folder, _, _ = inputs
    settings = ReferenceSettings(batch_size=3, rows_per_task=rows_per_task)
    workload = ReferenceStates(settings, student, folder, "k", store, dtype)
    result = run_workload(workload, store)
    store.complete_folder(REFERENCE_STATES, workload.folder_key)
    return store.folder(REFERENCE_STATES, workload.folder_key), result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_through_the_head_give_the_log_probabilities_of_the_base(inputs, store, dtype):
    student, _, tokens, pad_id = inputs
    folder, result = states_folder(inputs, store, dtype)
    states = open_reference_states(folder)
    assert len(states) == tokens.completion_offsets[-1]
    model, _ = load_student(student, dtype=dtype)
    head = model.get_output_embeddings().weight
    for row in range(len(tokens)):
        batch = collate([tokens[row]], pad_id)
        own = states.rows(*tokens.completion_offsets[row : row + 2])
        assert own.dtype == dtype

        def terms(given):
            return {"base": given.reference_logits.log_softmax(-1).gather(-1, given.targets[:, None])[:, 0]}

        with torch.no_grad():
            found = Likelihood(model, terms)(batch, reference_states=own, reference_head=(head, None))
        exact = dtype == torch.float32
        torch.testing.assert_close(found["base"], found["logprobs"], rtol=0, atol=1e-6 if exact else 0.05)
    assert store.publish("reference_states", result.keys)["tokens"].to_pylist() == [len(p) for p in states.parts]


def test_states_of_smaller_batches_go_to_the_same_folder(inputs, store):
    student, folder, tokens, _ = inputs
    asked = ReferenceStates(ReferenceSettings(batch_size=4, rows_per_task=7), student, folder, "k", store)
    run_workload(asked.with_batches({"batch_size": 2}), store)
    assert asked.smaller() == {"batch_size": 2}
    store.complete_folder(REFERENCE_STATES, asked.folder_key)
    states = open_reference_states(store.folder(REFERENCE_STATES, asked.folder_key))
    assert len(states) == tokens.completion_offsets[-1]


def test_states_in_bfloat16_are_kept_as_they_are(inputs, store):
    student, _, tokens, pad_id = inputs
    folder, _ = states_folder(inputs, store, torch.bfloat16, rows_per_task=1)
    model, _ = load_student(student, dtype=torch.bfloat16)
    states = open_reference_states(folder)
    batch = collate([tokens[4]], pad_id)
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    start, end = tokens.completion_offsets[4:6]
    assert torch.equal(states.rows(start, end), hidden[:, :-1][batch.mask])


def test_states_are_read_across_files(inputs, store):
    _, _, tokens, _ = inputs
    states = open_reference_states(states_folder(inputs, store)[0])
    assert len(states.parts) == 3
    everything = states.rows(0, len(states))
    start = int(tokens.completion_offsets[7])
    assert torch.equal(states.rows(start - 2, start + 3), everything[start - 2 : start + 3])
    assert states.rows(5, 5).shape == (0, everything.shape[1])
    with pytest.raises(DataError, match=f"holds {len(states)}; delete"):
        states.rows(0, len(states) + 1)


def test_a_missing_file_of_states_is_refused(inputs, store, tmp_path):
    folder, _ = states_folder(inputs, store)
    sorted(Path(folder).glob("*.npy"))[1].unlink()
    with pytest.raises(DataError, match="holds 2 files of states that do not follow"):
        open_reference_states(folder)
    with pytest.raises(DataError, match="holds 0 files"):
        open_reference_states(tmp_path)


def test_precisions_and_divisions_have_folders_of_their_own(inputs, store):
    student, folder, _, _ = inputs
    cases = [({}, torch.float32), ({}, torch.bfloat16), ({"rows_per_task": 9}, torch.float32)]
    keys = {
        ReferenceStates(ReferenceSettings(**s), student, folder, "k", store, dtype).folder_key for s, dtype in cases
    }
    assert len(keys) == 3


def test_states_that_do_not_fit_on_the_disk_are_refused_before_any_is_computed(inputs, store, monkeypatch):
    student, folder, tokens, _ = inputs
    size = int(tokens.completion_offsets[-1]) * 32 * 4
    workload = ReferenceStates(ReferenceSettings(rows_per_task=7), student, folder, "k", store)
    monkeypatch.setattr(Store, "free_bytes", lambda self: size - 1)
    said = f"final states of {tokens.completion_offsets[-1]} completion tokens take .* GiB .32 x 4 bytes a token"
    with pytest.raises(DataError, match=said):
        run_workload(workload, store)
    assert not Path(store.path(REFERENCE_STATES)).exists()
    monkeypatch.setattr(Store, "free_bytes", lambda self: size)
    assert run_workload(workload, store).made == 3
    monkeypatch.setattr(Store, "free_bytes", lambda self: 0)
    assert run_workload(workload, store).reused == 3
