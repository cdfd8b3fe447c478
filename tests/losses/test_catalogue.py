from pathlib import Path
from typing import Literal

import pytest

from raygeo.losses import ASFT, DPO, IFT, SFT, OfflineGRPO
from raygeo.losses.catalogue import describe
from raygeo.losses.reference import reference_page
from raygeo.losses.registry import LOSSES

PAGE = Path(__file__).parents[2] / "docs" / "loss-types.md"


def test_the_page_in_the_docs_is_current():
    assert PAGE.read_text() == reference_page(LOSSES.values()), "raygeo losses --page docs/loss-types.md"


def test_every_loss_can_be_described():
    for loss in LOSSES.values():
        entry = describe(loss)
        assert all(option.description and option.values for option in entry.options)
        assert len(entry.description.splitlines()[0]) > 20


def test_needs_are_those_of_the_settings():
    assert describe(SFT).needs == ()
    assert describe(OfflineGRPO).needs == ("log-probabilities of the base (surrogate: ppo)",)
    assert describe(DPO).needs == ("prompts with right and wrong rollouts", "log-probabilities of the base")
    assert describe(ASFT).needs == (
        "the base's logits: in each step with LoRA, else from its final hidden states, kept on disk",
    )
    assert any("forward pass more" in need for need in describe(IFT).needs)


@pytest.mark.parametrize(
    ("loss", "option", "values", "default"),
    [
        ("rift", "negative", "token | sequence | geometric | paper", "token"),
        ("rift", "lam", "number > 0, < 1", "0.5"),
        ("grpo", "bias", "number", "0.1"),
        ("grpo", "scale_rewards", "true | false", "false"),
        ("rft", "max_per_prompt", "integer ≥ 1 | null", "null"),
        ("otr", "samples", "integer ≥ 1", "256"),
        ("otr", "wrong_reward", "number < 1", "-0.1"),
    ],
)
def test_options_are_written_as_in_a_study(loss, option, values, default):
    [found] = [o for o in describe(LOSSES[loss]).options if o.name == option]
    assert (found.values, found.default) == (values, default)


def test_other_kinds_of_options():
    class Example(SFT):
        span: tuple[float, int] = (0.5, 2)
        word: str = "x"
        flags: Literal[True, False] = True

    options = {o.name: (o.values, o.default) for o in describe(Example).options}
    assert options["span"] == ("[number, integer]", "[0.5, 2]")
    assert options["word"] == ("text", "x")
    assert options["flags"] == ("true | false", "true")
