import numpy as np
import pytest
import torch
from curvature_cases import UNEQUAL, completion_logits, make_probe
from tiny import TinyLM

from raygeo.data.probes import Probe, nll, sequence_nlls
from raygeo.errors import DataError, StoreError
from raygeo.generation.renderer import renderer_for
from raygeo.models.batches import TokenSequence
from raygeo.toy.word_problems import word_tokenizer


def test_a_probe_comes_back_from_disk_as_it_was(tmp_path):
    UNEQUAL.save(tmp_path / "probe.npz")
    back = Probe.load(tmp_path / "probe.npz")
    assert (back.name, back.key, back.tokens) == ("tiny", UNEQUAL.key, 31)
    for a, b in zip(back.sequences, UNEQUAL.sequences, strict=True):
        assert a.prompt_length == b.prompt_length
        np.testing.assert_array_equal(a.ids, b.ids)


def test_a_probe_of_texts_is_that_of_a_study():
    tokenizer = word_tokenizer()
    encode = renderer_for(tokenizer).encode
    probe = Probe.of([("Amy has 3 pens .", "3 + 4 = 7"), ("Bea has 2 nuts .", "2")], tokenizer)
    for made, text in zip(probe.sequences, (("Amy has 3 pens .", "3 + 4 = 7"), ("Bea has 2 nuts .", "2")), strict=True):
        assert made.ids.tolist() == encode(*text).ids.tolist()
        assert made.ids[-1] == tokenizer.eos_token_id
    assert probe.tokens == 6 + 2
    assert probe.name == "texts"
    with pytest.raises(DataError, match="no sequences"):
        Probe.of([], tokenizer)


def test_what_batches_are_padded_with_has_no_effect():
    model = TinyLM()
    assert nll(model, UNEQUAL.batches()) == nll(model, UNEQUAL.batches(pad_id=3))
    assert len(UNEQUAL.batches()) == 1


def test_the_key_is_that_of_tokens_and_boundaries():
    ids = np.array([1, 2, 3, 4])
    probe = Probe("a", [TokenSequence(ids, 2), TokenSequence(ids, 2)])
    assert probe.key == Probe("b", [TokenSequence(ids.astype(np.int32), 2), TokenSequence(ids, 2)]).key
    others = [
        [TokenSequence(ids, 2)],
        [TokenSequence(ids, 1), TokenSequence(ids, 2)],
        [TokenSequence(ids, 2), TokenSequence(ids + 1, 2)],
        [TokenSequence(np.array([1, 2, 3]), 2), TokenSequence(np.array([4, 1, 2, 3, 4]), 2)],
    ]
    assert len({probe.key, *(Probe("a", other).key for other in others)}) == 5


def test_batches_are_bucketed_by_length_and_lose_nothing():
    order = UNEQUAL.order(2)
    batches = UNEQUAL.batches(0, 2)
    assert sorted(i for rows in order for i in rows) == list(range(6))
    lengths = [len(UNEQUAL.sequences[i]) for rows in order for i in rows]
    assert lengths == sorted(lengths)
    assert sum(batch.tokens for batch in batches) == UNEQUAL.tokens
    for rows, batch in zip(order, batches, strict=True):
        for i, ids, mask in zip(rows, batch.input_ids, batch.mask, strict=True):
            s = UNEQUAL.sequences[i]
            np.testing.assert_array_equal(ids[: len(s)], s.ids)
            np.testing.assert_array_equal(ids[1:][mask], s.ids[s.prompt_length :])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6])
def test_nll_is_the_token_mean_whatever_the_batches(batch_size):
    model = TinyLM()
    logits, targets = completion_logits(model, UNEQUAL)
    tokens = -logits.log_softmax(-1)[torch.arange(len(targets)), targets].detach()
    batches, order = UNEQUAL.batches(0, batch_size), UNEQUAL.order(batch_size)
    assert nll(model, batches) == pytest.approx(float(tokens.mean()), rel=1e-13)
    sums, counts = sequence_nlls(model, batches, order)
    assert sums.dtype == torch.float64
    assert counts.tolist() == [1, 9, 2, 12, 1, 6]
    expected = torch.stack([part.sum() for part in tokens.split(counts.tolist())])
    torch.testing.assert_close(sums, expected, rtol=1e-13, atol=0)
    assert not model.training


@pytest.mark.parametrize("prompt", [0, 3, 4])
def test_a_sequence_without_prompt_or_completion_is_refused(prompt):
    with pytest.raises(DataError, match="sequence 0"):
        Probe("p", [TokenSequence(np.array([1, 2, 3]), prompt)])


def test_an_empty_probe_is_refused():
    with pytest.raises(DataError, match="no sequences"):
        make_probe([])


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "probe.npz"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a readable probe"):
        Probe.load(path)


def test_missing_or_foreign_arrays_are_refused(tmp_path):
    with pytest.raises(StoreError, match="not a readable probe"):
        Probe.load(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    with pytest.raises(StoreError, match="not a readable probe"):
        Probe.load(tmp_path / "other.npz")
