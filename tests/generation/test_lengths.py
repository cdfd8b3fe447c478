"""What does not fit a model's longest sequence is refused, not cut shorter than was asked."""

from types import SimpleNamespace

import pytest

from raygeo.errors import StudentError
from raygeo.generation.engine import Request, check_lengths
from raygeo.generation.renderer import PlainRenderer
from raygeo.generation.vllm import VllmEngine
from raygeo.toy.word_problems import word_tokenizer

PROMPT = "Ivy has 10 pens ."


def test_vllm_refuses_what_it_would_cut_shorter():
    tokenizer = word_tokenizer()
    length = len(PlainRenderer(tokenizer).prompt_ids(PROMPT))
    engine = VllmEngine(SimpleNamespace(longest=length + 7), (), PlainRenderer(tokenizer))
    with pytest.raises(StudentError, match=rf"{length} tokens; with max_new_tokens=8 .*{length + 7} .*max_model_len"):
        engine.generate(Request([PROMPT], max_new_tokens=8))


def test_lengths_are_checked_to_the_token():
    check_lengths([3, 5], 4, 9, "nine")
    check_lengths([], 4, 4, "four")
    check_lengths([3, 5], 400, None, "nothing")
    with pytest.raises(StudentError, match="5 tokens; with max_new_tokens=5 that exceeds nine"):
        check_lengths([3, 5], 5, 9, "nine")
    with pytest.raises(StudentError, match="prompt 1 has no token"):
        check_lengths([3, 0], 4, 9, "nine")
