import pytest
import torch
from tiny import TINY as ARCHITECTURE

from raygeo.errors import StudentError
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.loading import load_student
from raygeo.toy.pretrain import PretrainSettings
from raygeo.toy.text import TextStudent, make_text_student, train_tokenizer

TEXTS = [
    (
        f"A cart holds {a} melons and each costs ${b}.50. What is it worth?\n",
        f"It is {a}*{b}.5 = {a * b + a / 2}.\n#### {a}",
    )
    for a in range(2, 12)
    for b in range(1, 5)
]
TINY = TextStudent(
    vocabulary=300,
    architecture=ARCHITECTURE,
    training=PretrainSettings(steps=25, batch_size=4, warmup_steps=2, loss_on="all"),
)


@pytest.mark.parametrize(
    "text",
    [
        TEXTS[0][0],
        " two  spaces\tand\n\nlines ",
        "naïve façade — “quotes” … 水 🙂",
        "1234.5 <<12*3=36>>36",
        "\x00\x7f\r\n",
        "",
    ],
)
def test_any_text_decodes_back_to_itself(text):
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_vocabulary_is_bounded_holds_all_bytes_and_one_token_a_digit():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert 259 < len(tokenizer) <= 300
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("2024", add_special_tokens=False).input_ids)
    assert tokens == list("2024")
    assert train_tokenizer(TEXTS, 300).get_vocab() == tokenizer.get_vocab()


def test_prompts_begin_and_completions_end():
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = PlainRenderer(tokenizer).encode(*TEXTS[0]).ids.tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:-1]) == "".join(TEXTS[0])


def test_a_student_is_made_learns_and_is_made_again(tmp_path):
    losses = []
    make_text_student(TINY, TEXTS, tmp_path / "a", lambda step, total, loss: losses.append(loss))
    make_text_student(TINY, TEXTS, tmp_path / "b")
    assert len(losses) == 25
    assert losses[-1] < 0.7 * losses[0]
    (a, tokenizer), (b, _) = load_student(tmp_path / "a"), load_student(tmp_path / "b")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert a.config.vocab_size == len(tokenizer)
    assert a.config.eos_token_id == tokenizer.eos_token_id


def test_texts_too_long_or_absent_are_refused(tmp_path):
    with pytest.raises(StudentError, match="context of 128"):
        make_text_student(TINY, [*TEXTS, ("word " * 500, "end")], tmp_path)
    with pytest.raises(StudentError, match="no texts"):
        make_text_student(TINY, [], tmp_path)
    assert not list(tmp_path.iterdir())
