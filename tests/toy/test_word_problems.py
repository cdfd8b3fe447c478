import math
import re
from collections import Counter
from random import Random

import pytest
from pydantic import ValidationError

from raygeo.errors import ConfigError
from raygeo.generation.renderer import PlainRenderer
from raygeo.toy.word_problems import (
    Carelessness,
    Event,
    Problem,
    ProblemSettings,
    draw_corpus,
    draw_problem,
    solve,
    word_tokenizer,
)

SETTINGS = ProblemSettings()
ALWAYS = {"carry": Carelessness(carry=1), "gets": Carelessness(gets=1), "gives": Carelessness(gives=1)}


def drawn(count, seed=0, settings=SETTINGS):
    rng = Random(seed)
    return [draw_problem(settings, rng) for _ in range(count)]


def read_answer(prompt: str) -> int:
    """Solve a problem from its words alone."""
    first, *told = prompt.split(" . ")
    value = int(first.split()[2])
    for sentence in told[:-1]:
        words = sentence.split()
        if words[1] in ("doubles", "triples"):
            value *= {"doubles": 2, "triples": 3}[words[1]]
        elif words[1] in ("drops", "gives", "loses", "sells", "uses"):
            value -= int(words[2])
        else:
            value += int(words[2])
    return value


def test_the_example_reads_as_documented():
    problem = Problem("Ivy", "pens", 10, (Event("gives", 4, "Amy"), Event("wins", 2)))
    assert problem.prompt == "Ivy has 10 pens . she gives 4 to Amy . she wins 2 more . how many pens ?"
    assert problem.solution == "10 - 4 = 6 . 6 + 2 = 8 . #### 8"
    assert problem.gold == "8"
    assert problem.steps == 2
    assert solve(problem, Carelessness(), Random(0), "teacher") == "first 10 - 4 = 6 . then 6 + 2 = 8 . so #### 8"


def test_solutions_are_right_arithmetic_and_match_the_words():
    for problem in drawn(3000):
        assert problem.gold == str(read_answer(problem.prompt))
        lines = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+) \.", problem.solution)
        assert len(lines) == problem.steps
        assert all(eval(f"{a}{sign}{b}") == int(c) and 0 <= int(c) <= 99 for a, sign, b, c in lines)
        assert [line[0] for line in lines] == [str(problem.start), *[line[3] for line in lines[:-1]]]


def test_problems_cover_their_ranges_and_only_those():
    problems = drawn(5000)
    assert {p.steps for p in problems} == {2, 3, 4}
    assert {p.start for p in problems} == set(range(3, 51))
    events = [event for p in problems for event in p.events]
    assert {event.amount for event in events if event.sign in "+-"} == set(range(2, 21))
    assert all(event.other != p.name for p in problems for event in p.events)
    assert Counter(event.verb for event in events).keys() == {
        *("buys", "finds", "gets", "makes", "wins", "drops", "gives", "loses", "sells", "uses", "doubles", "triples")
    }


@pytest.mark.parametrize(
    ("error", "problem", "expected"),
    [
        ("carry", Problem("Ivy", "pens", 17, (Event("wins", 8),)), "17 + 8 = 15 . #### 15"),
        ("carry", Problem("Ivy", "pens", 14, (Event("wins", 6),)), "14 + 6 = 10 . #### 10"),
        ("carry", Problem("Ivy", "pens", 95, (Event("wins", 17),)), "95 + 17 = 102 . #### 102"),
        ("carry", Problem("Ivy", "pens", 12, (Event("wins", 7),)), "12 + 7 = 19 . #### 19"),
        ("gets", Problem("Ivy", "pens", 20, (Event("gets", 3, "Amy"),)), "20 - 3 = 17 . #### 17"),
        ("gets", Problem("Ivy", "pens", 2, (Event("gets", 3, "Amy"),)), "2 - 3 = 0 . #### 0"),
        ("gets", Problem("Ivy", "pens", 20, (Event("wins", 3),)), "20 + 3 = 23 . #### 23"),
        ("gives", Problem("Ivy", "pens", 20, (Event("gives", 3, "Amy"),)), "20 + 3 = 23 . #### 23"),
        ("gives", Problem("Ivy", "pens", 20, (Event("loses", 3),)), "20 - 3 = 17 . #### 17"),
    ],
)
def test_each_error_is_the_one_named_and_happens_only_on_its_occasion(error, problem, expected):
    assert solve(problem, ALWAYS[error], Random(0)) == expected


def test_errors_are_carried_on_and_skipped_steps_are_left_out():
    problem = Problem("Ivy", "pens", 17, (Event("wins", 8), Event("doubles", 2)))
    assert solve(problem, Carelessness(carry=1), Random(0)) == "17 + 8 = 15 . 15 * 2 = 30 . #### 30"
    assert solve(problem, Carelessness(skip=1), Random(0), "teacher") == "so #### 17"


@pytest.mark.parametrize("name", ["carry", "gets", "gives", "skip"])
def test_error_rates_are_nominal(name):
    rate, occasions, errors, rng = 0.3, 0, 0, Random(1)
    solver = Carelessness(**{name: rate})
    for problem in drawn(2000, seed=2):
        if name == "skip":
            occasions += problem.steps
            errors += problem.steps - solve(problem, solver, rng).count("=")
            continue
        value = problem.start
        for event in problem.events:  # one event at a time, so that one error cannot hide another
            single = Problem(problem.name, problem.noun, value, (event,))
            value = int(single.gold)
            if solve(single, ALWAYS[name], rng) != single.solution:
                occasions += 1
                errors += solve(single, solver, rng) != single.solution
    assert occasions > 300
    assert abs(errors - rate * occasions) < 4 * math.sqrt(rate * (1 - rate) * occasions)


def test_equal_seeds_give_equal_corpora_and_the_teacher_share_is_kept():
    solver = Carelessness(carry=0.5)
    corpus = draw_corpus(SETTINGS, solver, 0.15, 4000, seed=5)
    assert corpus == draw_corpus(SETTINGS, solver, 0.15, 4000, seed=5)
    assert corpus != draw_corpus(SETTINGS, solver, 0.15, 4000, seed=6)
    share = sum("so ####" in solution for _, solution in corpus) / len(corpus)
    assert share == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / 4000))


def test_text_and_tokens_map_onto_each_other_exactly():
    tokenizer = word_tokenizer()
    careless = Carelessness(carry=0.5, gets=0.5, gives=0.5, skip=0.3)
    harder = ProblemSettings(steps=(3, 8), start=(0, 99), operand=(1, 60), multiply=0.3)
    for settings in (SETTINGS, harder):
        for prompt, solution in draw_corpus(settings, careless, 0.5, 1000, seed=0):
            head = tokenizer(prompt).input_ids
            tail = tokenizer(solution, add_special_tokens=False).input_ids
            assert tokenizer.decode(head, skip_special_tokens=True) == prompt
            assert tokenizer.decode(tail) == solution
            assert tokenizer(prompt + solution).input_ids == head + tail
            assert tokenizer(f"{prompt} {solution}").input_ids == head + tail


def test_any_token_sequence_survives_decoding():
    tokenizer, rng = word_tokenizer(), Random(0)
    for _ in range(500):
        ids = [rng.randrange(3, len(tokenizer)) for _ in range(rng.randrange(1, 30))]
        assert tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids == ids


def test_digits_are_one_token_each_and_specials_stand_where_they_should():
    tokenizer = word_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("12 + 3").input_ids) == ["<bos>", "1", "2", "+", "3"]
    sequence = PlainRenderer(tokenizer).encode("how many pens ?", "#### 5")
    assert tokenizer.convert_ids_to_tokens(sequence.ids.tolist()) == [
        "<bos>",
        *["how", "many", "pens", "?", "####", "5", "<eos>"],
    ]
    assert sequence.prompt_length == 5


def test_an_unknown_word_is_refused_rather_than_dropped():
    with pytest.raises(Exception, match="vocabulary"):
        word_tokenizer()("Ivy has 10 dragons .")


def test_settings_that_allow_no_step_are_refused():
    with pytest.raises(ValidationError, match="operand"):
        ProblemSettings(operand=(20, 2))
    with pytest.raises(ConfigError, match="keeps it within"):
        drawn(1, settings=ProblemSettings(start=(50, 50), operand=(60, 99), multiply=0))
