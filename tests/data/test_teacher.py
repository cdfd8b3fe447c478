"""A teacher's likeliest tokens: asked by teacher forcing, recorded while sampling, or read; and how they are kept."""

from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import save_tiny_student

from raygeo.cluster.execution import run_workload
from raygeo.data.merging import validate
from raygeo.data.readers import Prompt
from raygeo.data.reference import ReferenceSettings
from raygeo.data.sampling import DecodingSettings, Sampling
from raygeo.data.teacher import (
    TEACHER_TOP,
    TOP_COLUMNS,
    TeacherTop,
    TeacherTopFile,
    open_teacher_top,
    pack,
    refuse_other_tokens,
    save_teacher_top,
)
from raygeo.data.tokens import RolloutTokens
from raygeo.data.validation import Record
from raygeo.errors import DataError, StudentError
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.batches import collate
from raygeo.models.likelihood import TopLogprobs, completion_states, top_logprobs
from raygeo.models.loading import Loading, load_student, load_tokenizer
from raygeo.toy.word_problems import Carelessness, ProblemSettings, draw_problem, solve, word_tokenizer

RNG = Random(0)
PROBLEMS = [draw_problem(ProblemSettings(), RNG) for _ in range(3)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_tiny_student(tmp_path_factory.mktemp("teacher") / "student", seed=3)


@pytest.fixture(scope="module")
def model(teacher):
    return load_student(teacher)[0]


@pytest.fixture(scope="module")
def tokens(teacher):
    renderer = PlainRenderer(load_tokenizer(teacher))
    texts = [(problem.prompt, solve(problem, Carelessness(), RNG, "teacher")) for problem in (PROBLEMS * 3)[:7]]
    return RolloutTokens.encode(renderer, [(*text, row != 4) for row, text in enumerate(texts)])


def dense(model, sequence, temperature=1.0, width=None):
    """The law of every completion token of a sequence, in fp64: [n, V]."""
    with torch.no_grad():
        logits = model(torch.from_numpy(sequence.ids)[None]).logits[0, sequence.prompt_length - 1 : -1, :width]
    return (logits.double() / temperature).softmax(-1)


def holds(found, law, atol=1e-6):
    """Whether ids, log-probabilities and tail are those of a law."""
    top, _ = law.topk(found.ids.shape[-1])
    torch.testing.assert_close(found.logprobs.double().exp(), top, rtol=0, atol=atol)
    torch.testing.assert_close(law.gather(-1, found.ids), top, rtol=0, atol=atol)
    torch.testing.assert_close(found.tail.double(), 1 - top.sum(-1), rtol=0, atol=atol)


@pytest.mark.parametrize(("top_k", "width"), [(5, None), (5, 20), (10**4, None)])
def test_a_teacher_is_asked_by_forcing_whatever_the_slices(store, teacher, model, tokens, tmp_path, top_k, width):
    tokens.save(tmp_path)
    settings = ReferenceSettings(batch_size=2, rows_per_task=3)
    vocabulary = model.config.vocab_size
    work = TeacherTop(settings, teacher, tmp_path, "source", store, top_k, width or vocabulary, Loading())
    keys = run_workload(work, store).keys
    store.complete_folder(TEACHER_TOP, work.folder_key)
    file = open_teacher_top(store.stored(TEACHER_TOP, work.folder_key))
    assert file.count == min(top_k, width or vocabulary)
    assert len(file) == tokens.completion_offsets[-1]
    tail = 0.0
    for row in range(len(tokens)):
        found = file.rows(*tokens.completion_offsets[row : row + 2])
        holds(found, dense(model, tokens[row], width=width))
        tail += float(found.tail.double().sum())
    assert sum(store.read_unit("teacher_top", key)["tail"][0].as_py() for key in keys) == pytest.approx(tail)
    assert (tail == 0) == (top_k > vocabulary)
    everything = file.rows(0, len(file))
    middle = file.rows(2, len(file) - 1)
    assert all(torch.equal(part[2:-1], piece) for part, piece in zip(everything, middle, strict=True))
    with pytest.raises(DataError, match="were asked for"):
        file.rows(0, len(file) + 1)


def test_a_tail_is_never_rounded_to_nothing(model, tokens):
    states = torch.zeros(1, model.config.hidden_size)
    states[0, 0] = 1e4
    found = top_logprobs(model, states, 3)
    assert found.tail.item() > 0


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_sampling_keeps_the_likeliest_tokens_of_what_was_drawn_from(store, teacher, model, tmp_path, temperature):
    decoding = DecodingSettings(samples=3, max_new_tokens=8, temperature=temperature, top_logprobs=4, batch_size=4)
    renderer = PlainRenderer(load_tokenizer(teacher))
    prompts = [Prompt(str(i), problem.prompt, problem.gold, None) for i, problem in enumerate(PROBLEMS)]
    result = run_workload(Sampling(decoding, teacher, "teacher", renderer, prompts, "exact"), store)
    rows = [row for key in result.keys for row in store.read_unit("rollouts", key).to_pylist()]
    table = validate((Record("teacher", line, row) for line, row in enumerate(rows, 1)), max_set_aside=0.9).rollouts
    texts = [(row["prompt"], row["completion"], not row["truncated"]) for row in table.to_pylist()]
    tokens = RolloutTokens.encode(renderer, texts)
    save_teacher_top([table.slice(0, 2), table.slice(2)], tokens, model.config.vocab_size, tmp_path)
    file = open_teacher_top(tmp_path)
    for row in range(len(tokens)):
        found = file.rows(*tokens.completion_offsets[row : row + 2])
        holds(found, dense(model, tokens[row], temperature or 1.0), atol=1e-5)


def test_sampling_without_them_has_the_keys_it_had(teacher):
    assert "top_logprobs" not in DecodingSettings().model_dump()
    assert "top_logprobs" in DecodingSettings(top_logprobs=3).model_dump()


def record(**more):
    return {"prompt": "1 + 1", "completion": "2", "correct": True, "prompt_id": "a"} | more


def read(*records):
    return validate((Record("file", line, each) for line, each in enumerate(records, 1)), max_set_aside=0.99)


def test_likeliest_tokens_are_read_and_what_they_leave_is_the_tail():
    given = {"top_ids": [[3, 1], [0, 4]], "top_logprobs": np.log([[0.5, 0.25], [0.75, 0.25]]).tolist()}
    [row] = read(record(**given)).rollouts.to_pylist()
    assert row["top_ids"] == [3, 1, 0, 4]
    np.testing.assert_allclose(np.exp(row["top_logprobs"]), [0.5, 0.25, 0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(row["top_tail"], [0.25, 2**-24], rtol=1e-5)
    flat = {name: np.ravel(values).tolist() for name, values in given.items()} | {"top_tail": [0.25, 0.0]}
    [again] = read(record(**flat)).rollouts.to_pylist()
    assert again["top_ids"] == row["top_ids"]
    assert again["top_tail"] == [0.25, 0.0]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"top_logprobs": None}, "top_ids and top_logprobs do not come together"),
        ({"top_ids": [[3, 1]]}, "top_ids, top_logprobs and top_tail are not of the same tokens"),
        ({"top_tail": [0.1]}, "top_ids, top_logprobs and top_tail are not of the same tokens"),
        ({"top_ids": [[3, 1], [2]]}, "top_ids are not equally many numbers at each token"),
        ({"top_ids": [[3, 3], [0, 4]]}, "top_ids are not different token ids at each token"),
        ({"top_ids": [[3, -1], [0, 4]]}, "top_ids are not different token ids at each token"),
        ({"top_ids": [["a", "b"], ["c", "d"]]}, "top_ids are not equally many numbers at each token"),
        ({"top_logprobs": [[0.1, -1.0], [-1.0, -1.0]]}, "top_logprobs are not finite log-probabilities"),
        ({"top_logprobs": [[-0.1, -0.1], [-1.0, -1.0]]}, "top_logprobs add up to more than 1"),
        ({"top_tail": [0.1, 0.9]}, "top_logprobs and top_tail do not add up to 1"),
        ({"weight": -1}, "weight is not a number from 0"),
        ({"weight": True}, "weight is not a number"),
        ({"weight": float("inf")}, "weight is not a number from 0"),
    ],
)
def test_rows_with_other_numbers_are_set_aside(wrong, reason):
    given = {"top_ids": [[3, 1], [0, 4]], "top_logprobs": [[-1.0, -1.0], [-1.0, -1.0]]}
    found = read(record(weight=2), record(**(given | wrong)))
    assert found.set_aside["reason"].to_pylist() == [reason]
    assert found.rollouts["weight"].to_pylist() == [2.0]


def packed_rows(tokens, k=2, change=None):
    """Rollouts with made-up likeliest tokens, as a table of ``TOP_COLUMNS``."""
    lengths = tokens.completion_lengths.tolist()
    rows = [{"top_ids": [*range(k)] * n, "top_logprobs": [-2.0] * k * n, "top_tail": [0.5] * n} for n in lengths]
    if change:
        change(rows)
    kinds = (pa.large_list(pa.int32()), pa.large_list(pa.float32()), pa.large_list(pa.float32()))
    return pa.Table.from_pylist(rows, pa.schema(list(zip(TOP_COLUMNS, kinds, strict=True))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[1].update(dict.fromkeys(TOP_COLUMNS)), r"rollouts lack .*row 1.*teacher: \{model"),
        (lambda rows: rows[2]["top_tail"].append(0.1), "another number of them than completion tokens.*row 2"),
        (lambda rows: rows[0]["top_ids"].__setitem__(0, 99), "id 99, and the student has ids from 0 to 49"),
        (lambda rows: [each.pop() for each in (rows[1]["top_ids"], rows[1]["top_logprobs"])], "do not all hold 2"),
    ],
)
def test_columns_that_do_not_fit_the_student_are_refused(tokens, tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        save_teacher_top([packed_rows(tokens, change=change)], tokens, 50, tmp_path)
    save_teacher_top([packed_rows(tokens)], tokens, 50, tmp_path)
    assert open_teacher_top(tmp_path).rows(0, 3).logprobs.tolist() == [[-2.0, -2.0]] * 3


def test_a_file_that_is_missing_is_missed(tmp_path):
    np.save(tmp_path / f"{4:015d}.npy", np.zeros((2, 3), np.int32))
    with pytest.raises(DataError, match="do not follow each other"):
        open_teacher_top(tmp_path)


def test_packing_keeps_every_bit():
    generator = torch.Generator().manual_seed(0)
    top = TopLogprobs(
        torch.randint(2**31 - 1, (5, 3), generator=generator), -torch.rand(5, 3, generator=generator), torch.rand(5)
    )
    found = TeacherTopFile([pack(top).numpy()]).rows(0, 5)
    assert all(torch.equal(one, other) for one, other in zip(top, found, strict=True))


def test_another_vocabulary_is_refused_and_says_where_it_differs():
    own, other = word_tokenizer(), word_tokenizer()
    refuse_other_tokens(own, other, "teacher")
    other.add_tokens(["zebra"])
    with pytest.raises(StudentError, match=r"teacher gpt does not share the student's tokenizer.*'zebra': id None"):
        refuse_other_tokens(own, other, "gpt")


def test_states_in_pieces_give_what_they_give_at_once(model, tokens):
    states = completion_states(model, collate([tokens[0], tokens[1]], 0))
    whole, pieces = (top_logprobs(model, states, 3, chunk=size) for size in (2**26, 1))
    assert torch.equal(whole.ids, pieces.ids)
    torch.testing.assert_close(whole[1:], pieces[1:], rtol=1e-5, atol=1e-7)
