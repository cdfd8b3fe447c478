from typing import Literal

import pytest

from raygeo.losses import LOSSES
from raygeo.losses.base import Loss
from raygeo.losses.catalogue import NEEDS, _entry, catalogue


def test_says_of_every_loss_what_its_class_does():
    entries = catalogue()
    assert list(entries) == list(LOSSES)
    for name, loss in LOSSES.items():
        entry = entries[name]
        assert (entry.type, entry.title, entry.formula, entry.paper) == (name, loss.title, loss.formula, loss.paper)
        assert entry.unit == loss().unit
        assert {option.name for option in entry.options} == set(loss.model_fields) - {"type"}
        assert all(option.description and option.values for option in entry.options)
        assert len(entry.description.splitlines()[0]) > 20


def test_needs_are_those_of_the_settings():
    for name, entry in catalogue().items():
        needs = LOSSES[name]().needs
        assert {text for need, text in NEEDS.items() if need in needs} == set(entry.needs) & set(NEEDS.values())
    assert catalogue()["sft"].needs == ()
    assert catalogue()["grpo"].needs == ("log-probabilities of the base (surrogate: ppo)",)
    assert catalogue()["dpo"].needs == ("prompts with right and wrong rollouts", "log-probabilities of the base")
    assert catalogue()["asft"].needs == ("final hidden states of the base, kept on disk",)
    assert any("forward pass more" in need for need in catalogue()["ift"].needs)


@pytest.mark.parametrize(
    ("loss", "option", "values", "default"),
    [
        ("rift", "negative", "token | sequence | geometric | paper", "token"),
        ("rift", "lam", "number > 0, < 1", "0.5"),
        ("grpo", "bias", "number", "0.1"),
        ("grpo", "scale_by_std", "true | false", "false"),
        ("rft", "max_per_prompt", "integer ≥ 1 | null", "null"),
        ("otr", "samples", "integer ≥ 1", "256"),
        ("otr", "wrong_reward", "number < 1", "-0.1"),
    ],
)
def test_options_are_written_as_in_a_study(loss, option, values, default):
    [found] = [o for o in catalogue()[loss].options if o.name == option]
    assert (found.values, found.default) == (values, default)


def test_other_kinds_of_options():
    class Example(LOSSES["sft"]):
        span: tuple[float, int] = (0.5, 2)
        word: str = "x"
        flags: Literal[True, False] = True

    options = {o.name: (o.values, o.default) for o in _entry("example", Example).options}
    assert issubclass(Example, Loss)
    assert options["span"] == ("[number, integer]", "[0.5, 2]")
    assert options["word"] == ("text", "x")
    assert options["flags"] == ("true | false", "true")
