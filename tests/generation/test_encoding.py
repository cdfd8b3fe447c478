"""One beginning, nothing between prompt and completion, one end, for tokenizers of every kind and texts with marks."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raygeo.generation.renderer import PlainRenderer
from raygeo.toy.text import train_tokenizer
from raygeo.toy.word_problems import word_tokenizer

TEXTS = [
    "Amy has 10 pens . She gives 4 to Bob , and 6 + 2 = 8 are left .",
    "\\boxed{5} is x^2 + y / z\n#### 18\nThe answer: -7.5 %",
    "def f(a):\n    return a[0] * (b - 1)",
] * 4
BOS, EOS, TURN = "<s>", "</s>", "<end_of_turn>"


def byte_level(before="", behind=""):
    """GPT-2's kind; with a beginning-of-text, Llama 3's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained(backend, trainers.BpeTrainer, vocab_size=320, initial_alphabet=sorted(alphabet))
    return finished(backend, before, behind)


def byte_fallback(normalised):
    """Llama 2's kind, in its older (a normaliser) and its newer form; both put a mark before a text."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if normalised:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trained(backend, trainers.BpeTrainer, vocab_size=400, special=["<unk>", *bytes_], initial_alphabet=["▁"])
    return finished(backend, f"{BOS} ")


def unigram():
    """XLNet's and XGLM's kind, which marks every word and puts an end behind a text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trained(backend, trainers.UnigramTrainer, vocab_size=120, unk_token="<unk>", special=["<unk>"])
    return finished(backend, "", f" {EOS}")


def trained(backend, trainer, special=(), **options):
    tokens = ["<pad>", BOS, EOS, TURN, *special]
    backend.train_from_iterator(TEXTS, trainer(special_tokens=tokens, show_progress=False, **options))


def finished(backend, before="", behind=""):
    special = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
    if before or behind:
        backend.post_processor = processors.TemplateProcessing(f"{before}$A{behind}", special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})
    tokenizer.stop_ids = (tokenizer.convert_tokens_to_ids(TURN),)
    return tokenizer


KINDS = {
    "byte-level": byte_level(),
    "byte-level with beginning": byte_level(f"{BOS} "),
    "byte-level with beginning and end": byte_level(f"{BOS} ", f" {EOS}"),
    "byte fallback, normalised": byte_fallback(True),
    "byte fallback": byte_fallback(False),
    "unigram with end": unigram(),
    "trained on text": train_tokenizer([(text, text) for text in TEXTS], 400),
}
RENDERERS = {kind: PlainRenderer(tokenizer) for kind, tokenizer in KINDS.items()}
PIECES = ("Amy has 10", " pens", "4", " 6 + 2", "\n", "\\boxed{5}", ".", "- a")
plain = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join).filter(str.strip)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    prompt=plain, completion=plain, begins=st.integers(0, 2), behind=st.integers(0, 2), ends=st.integers(0, 2),
    space=st.sampled_from(["", "\n", " "]),
)  # fmt: skip
def test_marks_of_its_own_change_nothing_about_a_text(kind, prompt, completion, begins, behind, ends, space):
    """Whatever marks stand at its ends, a text has one beginning (if the tokenizer has or it had any) and one end."""
    renderer, tokenizer = RENDERERS[kind], KINDS[kind]
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    marked = bos * begins + prompt + eos * behind, completion + eos * ends + (space if ends else "")
    sequence = renderer.encode(*marked)
    ids, split = sequence.ids.tolist(), sequence.prompt_length
    adds = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == (adds or begins > 0)
    assert tokenizer.bos_token_id not in ids[1:]
    assert [place for place, token in enumerate(ids) if token in renderer.stop_ids] == [len(ids) - 1]
    bare = renderer.encode(prompt, completion)
    assert ids[ids[0] == tokenizer.bos_token_id :] == bare.ids.tolist()[adds:]
    assert ids[:split] == renderer.prompt_ids(marked[0])
    assert renderer.own_marks(*marked) == [
        mark
        for mark, held in (
            ("prompts with their own beginning-of-text", begins),
            ("prompts that ended in end-of-text", behind),
            ("completions with their own end", ends),
        )
        if held
    ]
    assert renderer.unfit_completion(marked[1], ids[split:]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_tokenised_together_as_they_are_alone(kind):
    renderer, eos = RENDERERS[kind], KINDS[kind].eos_token
    texts = [*PIECES, "", f"a{eos}", f"4 {eos}{eos} \n", f"{BOS} 4", "ünïcode 四", "  ", f"a {TURN} b"]
    pairs = [(prompt, completion) for prompt in texts for completion in texts]
    for pair, together in zip(pairs, renderer.encode_many(pairs), strict=True):
        alone = renderer.encode(*pair)
        assert together.ids.tolist() == alone.ids.tolist()
        assert together.prompt_length == alone.prompt_length
    assert renderer.encode_many([]) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("unigram")])
@settings(max_examples=25, deadline=None)
@given(prompt=plain, completion=plain)
def test_tokens_of_prompt_and_completion_are_those_of_one_text(kind, prompt, completion):
    """Decoded together they are the text, so that no mark was added at the boundary, and apart they come back."""
    renderer, tokenizer = RENDERERS[kind], KINDS[kind]
    sequence = renderer.encode(prompt, completion, ended=False)
    ids = sequence.ids.tolist()
    start = ids[0] == tokenizer.bos_token_id
    whole = tokenizer.decode(ids[start:])
    expected = tokenizer.decode(tokenizer(prompt + completion, add_special_tokens=False).input_ids)
    assert whole == expected
    again = renderer.text_behind(ids[sequence.prompt_length :])
    assert again == completion
    assert renderer.encode(prompt, again, ended=False).ids.tolist() == ids


@pytest.mark.parametrize("kind", ["byte fallback, normalised", "byte fallback"])
def test_a_completion_has_no_word_start_mark_that_the_text_has_not(kind):
    renderer, tokenizer = RENDERERS[kind], KINDS[kind]
    mark = tokenizer.convert_tokens_to_ids("▁")
    apart = tokenizer("4", add_special_tokens=False).input_ids
    assert apart[0] == mark, "this kind marks the beginning of a text"
    sequence = renderer.encode("6 - 2 = ", "4", ended=False)
    assert sequence.ids[sequence.prompt_length :].tolist() == apart[1:]
    spaced = renderer.encode("6 - 2 =", " 4", ended=False)
    assert spaced.ids[spaced.prompt_length :].tolist() == apart


def test_a_turn_that_ends_in_its_own_mark_ends_once():
    renderer, tokenizer = RENDERERS["byte-level with beginning"], KINDS["byte-level with beginning"]
    turn = tokenizer.convert_tokens_to_ids(TURN)
    assert renderer.encode("4 + 4 =", f"8{TURN}\n").ids[-1] == turn
    assert renderer.encode("4 + 4 =", f"8{TURN}{EOS}").ids[-1] == turn
    assert renderer.encode("4 + 4 =", "8").ids[-1] == tokenizer.eos_token_id
    assert renderer.encode("4 + 4 =", f"8{TURN}", ended=False).ids[-1] != turn


def test_special_tokens_inside_a_prompt_stay_and_are_told():
    renderer, tokenizer = RENDERERS["byte-level with beginning"], KINDS["byte-level with beginning"]
    prompt = f"4 + 4 ={TURN}\n8"
    assert tokenizer.convert_tokens_to_ids(TURN) in renderer.prompt_ids(prompt)
    assert renderer.own_marks(prompt, "8") == ["prompts with special tokens inside"]
    tokenizer.add_tokens(AddedToken("<tool>", special=True))
    renderer = pickle.loads(pickle.dumps(PlainRenderer(tokenizer)))
    assert "<tool>" not in renderer.tokenizer.all_special_tokens
    assert renderer.own_marks("4 + 4 =", "8 <tool> 8") == ["completions with special tokens inside"]


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        (f"8{EOS} and so on", "continues behind an end-of-text token"),
        (f"8{TURN}\n<user>", "continues behind an end-of-text token"),
        (f"8 {BOS}9", "beginning-of-text"),
        (EOS, "nothing but its end"),
    ],
)
def test_completions_that_no_model_writes_are_named(completion, said):
    renderer = RENDERERS["byte-level with beginning"]
    assert said in renderer.unfit_completion(completion, renderer.completion_ids(completion))


def test_the_words_of_the_built_in_problems_are_as_they_were():
    tokenizer = word_tokenizer()
    renderer = PlainRenderer(tokenizer)
    sequence = renderer.encode("Ivy has 10 pens . how many pens ?", "#### 10")
    expected = [*tokenizer("Ivy has 10 pens . how many pens ?").input_ids, *tokenizer("#### 10").input_ids[1:]]
    assert sequence.ids.tolist() == [*expected, tokenizer.eos_token_id]
    assert renderer.text_behind(tokenizer("10 - 4 = 6 . #### 6").input_ids) == "10 - 4 = 6 . #### 6"


def test_a_stop_that_is_no_special_token_is_not_read_out_of_a_text():
    """A line break may end answers, and a token that the vocabulary lacks has no text."""
    tokenizer = byte_level(f"{BOS} ")
    line = tokenizer("\n", add_special_tokens=False).input_ids[0]
    tokenizer.stop_ids = (line, 10**6)
    renderer = PlainRenderer(tokenizer)
    ids = renderer.encode("4 + 4 =", "8 is None").ids.tolist()
    assert tokenizer.decode(ids[-5:-1]).endswith("None")
    assert ids[-1] == tokenizer.eos_token_id
