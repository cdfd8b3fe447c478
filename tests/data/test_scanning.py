import pytest

from raygeo.data.scanning import Limit, read_as
from raygeo.generation.renderer import PlainRenderer
from raygeo.toy.word_problems import word_tokenizer

TOO_LONG = "prompt and completion longer than"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Limit(7, "max_tokens"), f"{TOO_LONG} max_tokens (7)"),
        (Limit(2, "max_tokens"), "prompt longer than max_tokens (2)"),
        (Limit(7), f"{TOO_LONG} the context (7)"),
        (Limit(8, "max_tokens"), None),
        (None, None),
    ],
)
def test_rows_that_are_too_long_say_what_limits_them(limit, said):
    [reading] = read_as(PlainRenderer(word_tokenizer()), limit, [("1 + 1 =", "#### 2")])
    assert (reading.unfit, reading.prompt_tokens, len(reading.ids)) == (said, 5, 8)
