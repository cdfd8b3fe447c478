"""Prompts in chat templates: which tokens a model reads, which are the assistant's, and which templates are refused."""

import json
import pickle

import pytest
import torch
from chat_cases import CHATML, GEMMA, LLAMA3, MISTRAL, R1, THINKING, byte_level, metaspace, qwen, save_tiny_chat
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raygeo.data.probes import Probe
from raygeo.data.readers import Prompt
from raygeo.data.sampling import DecodingSettings, Sampling
from raygeo.errors import DataError, StudentError
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import ChatRenderer, ChatSettings, PlainRenderer, renderer_for
from raygeo.generation.renderer.conversation import conversation_text, is_conversation, messages_of
from raygeo.models.loading import load_student, load_tokenizer
from raygeo.toy.pretrain import PretrainSettings, pretrain

LLAMA_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TOKENIZERS = {
    "chatml": qwen(CHATML),
    "qwen3": qwen(),
    "thinking": qwen(THINKING),
    "llama3": byte_level(LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", LLAMA_MARKS),
    "gemma": byte_level(GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), stops=("<end_of_turn>",)),
    "mistral": metaspace(MISTRAL),
}
SYSTEM, QUESTION, ANSWER = "Be brief.", "6 times 7 ?", "It is 42."
DATED = {"date_string": "26 Jul 2024"}
LLAMA_HEAD = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
EXPECTED = {
    # what a model reads, what it writes (both with their special tokens), and how that is made
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n6 times 7 ?<|im_end|>\n<|im_start|>assistant\n",
        "It is 42.<|im_end|>",
        ChatSettings(system=SYSTEM),
    ),
    "qwen3": (
        "<|im_start|>user\n6 times 7 ?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "It is 42.<|im_end|>",
        ChatSettings(template_kwargs={"enable_thinking": False}),
    ),
    "thinking": (
        "<|im_start|>user\n6 times 7 ?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "It is 42.<|im_end|>",
        ChatSettings(),
    ),
    "llama3": (
        f"{LLAMA_HEAD}Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n6 times 7 ?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "It is 42.<|eot_id|>",
        ChatSettings(system=SYSTEM, template_kwargs=DATED),
    ),
    "gemma": (
        "<bos><start_of_turn>user\n6 times 7 ?<end_of_turn>\n<start_of_turn>model\n",
        "It is 42.<end_of_turn>",
        ChatSettings(),
    ),
    "mistral": ("<s>[INST] 6 times 7 ?[/INST]", " It is 42.</s>", ChatSettings()),
}
every_template = pytest.mark.parametrize("family", EXPECTED)


def renderer_of(family):
    return ChatRenderer(TOKENIZERS[family], EXPECTED[family][2])


@every_template
def test_the_tokens_are_those_of_the_template_and_the_assistants_are_told_apart(family):
    tokenizer, renderer = TOKENIZERS[family], renderer_of(family)
    read, written, _ = EXPECTED[family]
    sequence = renderer.encode(QUESTION, ANSWER)
    ids = sequence.ids.tolist()
    assert ids == tokenizer(read + written, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids[: sequence.prompt_length]) == read
    assert tokenizer.decode(ids[sequence.prompt_length :]).strip() == written.strip()
    assert ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)
    assert ids[-1] == renderer.stop_ids[0] == renderer.end_id
    assert {tokenizer.eos_token_id, *tokenizer.__dict__.get("stop_ids", ())} <= set(renderer.stop_ids)
    cut = renderer.encode(QUESTION, ANSWER, ended=False)
    assert cut.ids.tolist() == ids[:-1]
    assert renderer.text_behind(ids[sequence.prompt_length : -1]) == ANSWER
    own = tokenizer.decode(renderer.end_id)
    assert renderer.encode((tokenizer.bos_token or "") * 2 + QUESTION, f"{ANSWER}{own}\n").ids.tolist() == ids


PIECES = ("<think>\n", "so 6", "</think>", "\n\n", " 6 + 2", "\\boxed{5}", ".", "é", "- a")
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join).filter(str.strip)


@every_template
@settings(max_examples=15, deadline=None, derandomize=True)
@given(completion=texts.filter(lambda text: not text.lstrip().startswith("<think>")))
def test_what_was_written_comes_back_and_is_trained_on_as_it_was_written(family, completion):
    """A completion gives the tokens of its text alone, thinking included, and is read back from them."""
    renderer, tokenizer = renderer_of(family), TOKENIZERS[family]
    ids = renderer.completion_ids(completion)
    assert renderer.text_behind(ids[:-1]) == completion
    assert [i for i in ids if i in renderer.stop_ids] == [renderer.end_id]
    lead = " " if family == "mistral" else ""
    before = tokenizer("[/INST]", add_special_tokens=False).input_ids if lead else []
    assert tokenizer.decode([*before, *ids[:-1]]).removeprefix("[/INST]") == lead + completion


THOUGHT = "6 x 7\n</think>\n\n42"


def test_thinking_that_the_generation_prompt_opens_is_opened_once():
    renderer, tokenizer = renderer_of("thinking"), TOKENIZERS["thinking"]
    for begins in ("<think>\n", "<think>", "\n<think>\n"):
        ids = renderer.encode(QUESTION, f"{begins}6 x 7\n</think>\n\n42").ids.tolist()
        assert ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
        assert tokenizer.decode(ids).endswith("<think>\n6 x 7\n</think>\n\n42<|im_end|>")


@pytest.mark.parametrize("family", list(EXPECTED))
def test_only_thoughts_are_opened_by_a_generation_prompt(family):
    assert renderer_of(family).opened == ("<think>\n" if family == "thinking" else "")


@pytest.mark.parametrize("template", [THINKING, CHATML])
def test_a_rollout_begins_with_the_thought_that_its_teachers_prompt_opened(tmp_path, template):
    folder = save_tiny_chat(tmp_path / "teacher", template=template, texts=[(QUESTION, THOUGHT)])
    renderer = renderer_for(load_tokenizer(folder))
    opened = "<think>\n" if template == THINKING else ""
    decoding = DecodingSettings(samples=4, max_new_tokens=6)
    work = Sampling(decoding, folder, "t", renderer, [Prompt("0", QUESTION, "42", None)], "exact")
    rows = work.compute(work.setup(), work.tasks()[0].payload)["rollouts"]
    assert len(rows) == 4
    for row in rows:
        assert row["completion"].startswith(opened)
        said = row["completion"].removeprefix(opened)
        assert renderer.completion_ids(row["completion"]) == renderer.completion_ids(said)
        ids = renderer.completion_ids(row["completion"], not row["truncated"])
        assert len(row["logprobs"]) == len(ids)
        bare = ChatRenderer(TOKENIZERS["qwen3"])
        assert bare.text_behind(bare.completion_ids(row["completion"], False)) == row["completion"]


def test_thinking_that_the_generation_prompt_closes_is_not_opened_again():
    renderer, tokenizer = renderer_of("qwen3"), TOKENIZERS["qwen3"]
    bare = renderer.encode(QUESTION, "42").ids.tolist()
    assert renderer.encode(QUESTION, "<think>\n\n</think>\n\n42").ids.tolist() == bare
    assert bare.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    thought = "<think>\n6 x 7\n</think>\n\n42"
    assert "has closed" in renderer.unfit_completion(thought, renderer.completion_ids(thought))
    assert renderer.unfit_completion("42", renderer.completion_ids("42")) is None


def test_a_template_that_shows_answers_otherwise_later_leaves_the_completion_as_it_was_written():
    """Qwen3 puts an empty block of thinking into an answer without one when it shows the whole conversation."""
    renderer, tokenizer = ChatRenderer(TOKENIZERS["qwen3"]), TOKENIZERS["qwen3"]
    text = "<|im_start|>user\n6 times 7 ?<|im_end|>\n<|im_start|>assistant\n42<|im_end|>"
    assert renderer.encode(QUESTION, "42").ids.tolist() == tokenizer(text).input_ids
    assert renderer.left_out == "<think>\n\n</think>\n\n"
    assert not any(renderer_of(family).left_out for family in ("chatml", "qwen3", "mistral"))


def test_a_turn_may_end_in_another_end_of_its_own():
    renderer, tokenizer = renderer_of("chatml"), TOKENIZERS["chatml"]
    assert renderer.encode(QUESTION, "42<|endoftext|>").ids[-1] == tokenizer.eos_token_id
    assert renderer.encode(QUESTION, "42<|im_end|>\n").ids.tolist() == renderer.encode(QUESTION, "42").ids.tolist()
    assert renderer.end_text(tokenizer.eos_token_id) == "<|endoftext|>"
    assert renderer.end_text(renderer.end_id) == ""
    said = renderer.unfit_completion(*(f"42<|im_end|>\n<|im_start|>user\n{QUESTION}",), renderer.completion_ids(
        f"42<|im_end|>\n<|im_start|>user\n{QUESTION}"
    ))  # fmt: skip
    assert "continues behind" in said


CONVERSATION = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "<think>\nnext\n</think>\n\n2"},
    {"role": "user", "content": "3 \"é\""},
]  # fmt: skip


def test_a_conversation_is_one_text_and_comes_back():
    prompt = conversation_text(CONVERSATION)
    assert is_conversation(prompt)
    assert messages_of(prompt) == CONVERSATION
    assert conversation_text(CONVERSATION[3:]) == '3 "é"'
    assert messages_of('3 "é"') == CONVERSATION[3:]
    for text in (
        json.dumps(CONVERSATION),
        prompt + " ",
        prompt[:-1],
        "[]",
        '[{"role":"user"}]',
        '[{"role":1,"content":"a"}]',
    ):
        assert not is_conversation(text)


def test_a_conversation_is_put_into_the_template_with_its_own_system_message():
    renderer = ChatRenderer(TOKENIZERS["qwen3"], ChatSettings(system=SYSTEM))
    prompt = conversation_text(CONVERSATION)
    assert renderer.unfit_prompt(prompt) is None
    assert renderer.tokenizer.decode(renderer.prompt_ids(prompt)) == (
        "<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        '<|im_start|>user\n3 "é"<|im_end|>\n<|im_start|>assistant\n'
    )
    assert "Be brief." in renderer.tokenizer.decode(renderer.prompt_ids(QUESTION))


@pytest.mark.parametrize(
    ("family", "prompt", "said"),
    [
        ("gemma", conversation_text(CONVERSATION), "System role not supported"),
        ("gemma", conversation_text([CONVERSATION[1], CONVERSATION[3]]), "must alternate"),
        ("mistral", conversation_text(CONVERSATION[:2]), "not how it begins the whole conversation"),
        ("chatml", conversation_text(CONVERSATION[:3]), "ends with the assistant's own message"),
        ("chatml", f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n", "already holds"),
        ("mistral", f"[INST] {QUESTION} [/INST]", "already holds"),
        ("thinking", "why does a prompt hold <|im_end|> ?", "already holds"),
    ],
)
def test_prompts_that_cannot_be_put_into_the_template_are_named(family, prompt, said):
    renderer = renderer_of(family)
    assert said in renderer.unfit_prompt(prompt)
    with pytest.raises(DataError, match=r"prompt|conversation"):
        renderer.prompt_ids(prompt)


def test_a_plain_student_refuses_conversations():
    renderer = PlainRenderer(TOKENIZERS["chatml"])
    assert "only a student with a chat template" in renderer.unfit_prompt(conversation_text(CONVERSATION))
    with pytest.raises(DataError, match="conversation of several messages"):
        renderer.prompt_ids(conversation_text(CONVERSATION))
    assert renderer.unfit_prompt(QUESTION) is None


NO_END = CHATML.replace("<|im_end|>\\n' }}\n{%- endfor", "\\n' }}\n{%- endfor")
LOUD = CHATML.replace("message.content", "message.content | upper")


@pytest.mark.parametrize(
    ("tokenizer", "chat", "said"),
    [
        (byte_level(R1, "<s>", "</s>", ("<|User|>", "<|Assistant|>")), {}, "not how it begins the whole conversation"),
        (TOKENIZERS["mistral"], {"system": SYSTEM}, "not how it begins the whole conversation"),
        (TOKENIZERS["gemma"], {"system": SYSTEM}, "System role not supported"),
        (qwen(NO_END), {}, "does not end the assistant's answer"),
        (qwen(LOUD), {}, "does not show the assistant's answer"),
        (qwen("{{ nothing.at.all }}"), {}, "undefined"),
        (qwen("{% for"), {}, "cannot be used"),
        (qwen({"tool_use": CHATML, "rag": CHATML}), {}, "cannot be used"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_with_the_reason(tokenizer, chat, said):
    with pytest.raises(StudentError, match=said):
        renderer_for(tokenizer, ChatSettings(**chat))
    assert isinstance(renderer_for(tokenizer, ChatSettings(template="plain")), PlainRenderer)


def test_the_renderer_is_chosen_by_template_and_setting():
    bare = byte_level(None, None, "<|endoftext|>")
    assert renderer_for(bare).identity == "plain"
    assert renderer_for(TOKENIZERS["qwen3"], ChatSettings(template="plain")).identity == "plain"
    for settings_ in ({"template": "chat"}, {"system": SYSTEM}, {"template_kwargs": {"enable_thinking": False}}):
        with pytest.raises(StudentError, match="no chat template in the tokenizer"):
            renderer_for(bare, ChatSettings(**settings_))
    with pytest.raises(StudentError, match="set to plain"):
        renderer_for(TOKENIZERS["qwen3"], ChatSettings(template="plain", system=SYSTEM))
    for wrong in ({"template": "chatml"}, {"template_kwargs": {"tokenize": True}}):
        with pytest.raises(ValidationError):
            ChatSettings(**wrong)


def test_whatever_changes_tokens_changes_the_identity():
    asked = [
        renderer_for(TOKENIZERS[family], ChatSettings(**chat)).identity
        for family in ("qwen3", "chatml")
        for chat in ({}, {"system": SYSTEM}, {"template_kwargs": {"enable_thinking": False}})
    ]
    assert len(set(asked)) == 6
    assert all(identity.startswith("chat-") for identity in asked)
    again = pickle.loads(pickle.dumps(ChatRenderer(TOKENIZERS["qwen3"])))
    assert again.identity == asked[0] == renderer_for(TOKENIZERS["qwen3"], ChatSettings(template="chat")).identity
    assert (
        again.encode(QUESTION, ANSWER).ids.tolist()
        == ChatRenderer(TOKENIZERS["qwen3"]).encode(QUESTION, ANSWER).ids.tolist()
    )


def test_todays_date_is_in_no_prompt():
    renderer = ChatRenderer(TOKENIZERS["llama3"])
    assert "Today Date: 01 Jan 2025\n" in renderer.tokenizer.decode(renderer.prompt_ids(QUESTION))


def test_tokens_that_a_template_does_not_begin_get_the_tokenizers_beginning():
    tokenizer = byte_level(CHATML, "<s>", "</s>", ("<|im_start|>", "<|im_end|>"))
    ids = ChatRenderer(tokenizer).encode(QUESTION, ANSWER).ids.tolist()
    assert (ids[0], ids.count(ids[0])) == (tokenizer.bos_token_id, 1)


def test_marks_in_texts_are_told():
    renderer = ChatRenderer(byte_level(CHATML, "<s>", "</s>", ("<|im_start|>", "<|im_end|>", "<tool>")))
    assert renderer.own_marks(f"<s>{QUESTION}", f"{ANSWER}</s>") == [
        "prompts with their own beginning-of-text",
        "completions with their own end",
    ]
    assert renderer.own_marks(f"<tool>{QUESTION}", "<tool>") == [
        "prompts with special tokens inside",
        "completions with special tokens inside",
    ]
    assert renderer.text_behind(renderer.completion_ids("a <tool> b", ended=False)) == "a <tool> b"


def test_a_taught_chat_model_answers_and_its_answer_trains_the_same_tokens(tmp_path):
    """Generation reads the prompt that training reads, stops at the turn's end, and gives back the text."""
    folder = save_tiny_chat(tmp_path / "model", texts=[(QUESTION, ANSWER)])
    model, tokenizer = load_student(folder)
    renderer = renderer_for(tokenizer)
    assert isinstance(renderer, ChatRenderer)
    sequence = renderer.encode(QUESTION, ANSWER)
    prompt = tokenizer.decode(sequence.ids[1 : sequence.prompt_length])
    taught = PretrainSettings(steps=40, batch_size=2, warmup_steps=0)
    pretrain(model, tokenizer, [(prompt, f"{ANSWER}<|im_end|>")], taught)
    ((completion,),) = LocalEngine(model, renderer).generate(Request([QUESTION], max_new_tokens=24))
    assert (completion.text, completion.stop, completion.end) == (ANSWER, "end", "")
    assert completion.ids == tuple(sequence.ids[sequence.prompt_length :].tolist())
    assert Probe.of([(QUESTION, ANSWER)], tokenizer).sequences[0].ids.tolist() == sequence.ids.tolist()
    with torch.no_grad():
        logits = model(torch.from_numpy(sequence.ids)[None]).logits[0, sequence.prompt_length - 1 : -1]
    assert tuple(logits.argmax(-1).tolist()) == completion.ids
