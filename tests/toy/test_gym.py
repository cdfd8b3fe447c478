"""Problems of reasoning-gym: our tracers against the package's own scorers, and what is drawn, refused and made."""

import sys
from itertools import islice
from random import Random

import pytest
import torch
from pydantic import ValidationError
from tiny import TINY as ARCHITECTURE

from raygeo.data.grading import grade_exact, marked_answer
from raygeo.errors import ConfigError
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.loading import load_tokenizer
from raygeo.toy.gym.families import FAMILIES
from raygeo.toy.gym.problems import draw, import_gym
from raygeo.toy.gym.solver import Slips, Solver
from raygeo.toy.gym.student import (
    GymStudent,
    GymTeacher,
    base_corpus,
    gym_problems,
    make_gym_base,
    make_gym_teacher,
    teacher_corpus,
)
from raygeo.toy.gym.tokenizer import CHARACTERS, gym_tokenizer
from raygeo.toy.pretrain import PretrainSettings

ENTRIES = 300
WIDE = {
    "chain_sum": {"terms": (2, 8), "digits": (1, 4)},
    "products": {"terms": (2, 4), "digits": (1, 4)},
    "gcd": {"numbers": (2, 4), "value": (1, 1000)},
    "lcm": {"numbers": (2, 4), "value": (1, 100)},
    "count_bits": {"n": (1, 2**31 - 1)},
    "base_conversion": {"base": (2, 10), "value": (0, 1000)},
    "leg_counting": {"animals": (1, 10), "instances": (1, 40)},
    "letter_counting": {"words": (1, 20)},
}
SLOPPY = Slips(carry=0.5, borrow=0.5, table=0.5, remainder=0.5, repeats=0.5, skip=0.1)
SETTINGS = GymStudent()


def levels_of(name):
    """A family at its usual and its harder level, and over a wide range, as two families with a level name."""
    family = FAMILIES[name]()
    wide = FAMILIES[name](usual=WIDE[name])
    return [(family, "usual"), (family, "harder"), (wide, "usual")]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_solution_is_right_by_the_packages_scorer_and_slips_are_wrong_by_both(name):
    scorer = import_gym().create_dataset(name, seed=0, size=1).score_answer
    for family, level in levels_of(name):
        wrong = 0
        for number, problem in enumerate(islice(draw(family, level, "test"), ENTRIES)):
            entry = {"answer": problem.gold, "metadata": problem.metadata}
            assert scorer(marked_answer(problem.solution), entry) == 1.0
            assert grade_exact(problem.solution, problem.gold).correct
            sloppy = problem.solve(SLOPPY, Random(number))
            right = grade_exact(sloppy, problem.gold).correct
            assert right == (scorer(marked_answer(sloppy), entry) == 1.0)
            wrong += not right
        assert ENTRIES * 0.05 < wrong < ENTRIES


@pytest.mark.parametrize(
    ("slips", "expected"),
    [
        ({}, "17+8=25;32-8=24;7*8=56;70*80=5600;21=1*12+9;-17-8=-25;5-8=-3;#### 3"),
        ({"carry": 1}, "17+8=15;32-8=24;7*8=56;70*80=5600;21=1*12+9;-17-8=-15;5-8=-3;#### 3"),
        ({"borrow": 1}, "17+8=25;32-8=34;7*8=56;70*80=5600;21=1*12+9;-17-8=-25;5-8=-3;#### 3"),
        ({"table": 1}, "17+8=25;32-8=24;7*8=48;70*80=4800;21=1*12+9;-17-8=-25;5-8=-3;#### 3"),
        ({"remainder": 1}, "17+8=25;32-8=24;7*8=56;70*80=5600;21=1*12+8;-17-8=-25;5-8=-3;#### 3"),
        ({"repeats": 1}, "17+8=25;32-8=24;7*8=56;70*80=5600;21=1*12+9;-17-8=-25;5-8=-3;#### 1"),
    ],
)
def test_each_slip_is_one_habit(slips, expected):
    solver = Solver(Slips(**slips), Random(0))
    solver.add(17, 8)
    solver.subtract(32, 8)
    solver.times(7, 8)
    solver.times(70, 80)
    solver.divide(21, 12)
    solver.subtract(-17, 8)
    solver.subtract(5, 8)
    assert solver.solution(solver.occurrences("e", "Eleven")) == expected


def test_signed_sums_are_those_of_integers():
    for a in range(-120, 120, 7):
        for b in range(120):
            solver = Solver(Slips(), Random(0))
            assert (solver.add(a, b), solver.subtract(a, b)) == (a + b, a - b)


def test_dropped_carries_and_forgotten_borrows_are_one_power_of_ten():
    for a in range(0, 300, 7):
        for b in range(0, a + 1, 3):
            solver = Solver(Slips(carry=1, borrow=1), Random(0))
            assert a + b - solver.add(a, b) in (0, 10, 100, 1000)
            assert solver.subtract(a, b) - (a - b) in (0, 10, 100)


def test_steps_left_out_are_missing():
    problem = next(draw(FAMILIES["chain_sum"](usual={"terms": (3, 3), "digits": (2, 2)}), "usual", "x"))
    first = problem.metadata["expression"].split()[0]
    assert problem.solve(Slips(skip=1), Random(0)) == f"#### {first}"


@pytest.mark.parametrize("name", FAMILIES)
def test_text_and_tokens_map_onto_each_other(name):
    tokenizer = gym_tokenizer(SETTINGS.families())
    for family, level in levels_of(name)[:2]:
        for problem in islice(draw(family, level, "tokens"), 50):
            prompt = tokenizer(problem.prompt).input_ids
            completion = tokenizer(problem.solution, add_special_tokens=False).input_ids
            assert tokenizer.decode(prompt, skip_special_tokens=True) == problem.prompt
            assert tokenizer.decode(completion) == problem.solution
            assert tokenizer(problem.prompt + problem.solution).input_ids == prompt + completion
            assert len(prompt) < 80


def test_what_questions_have_in_common_is_one_token_and_digits_are_one_each():
    tokenizer = gym_tokenizer(SETTINGS.families())
    text = "State the final answer to the following arithmetic problem: 12"
    assert [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False).input_ids] == [text[:-2], "1", "2"]
    legs = tokenizer.tokenize("3 ants, an ant")
    assert legs == ["3", " ", "ant", "s", ",", " ", "a", "n", " ", "a", "n", "t"]
    assert len(gym_tokenizer(())) == len(CHARACTERS) + 4


def test_the_animals_are_the_packages():
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    from raygeo.toy.gym.families.leg_counting import LEGS

    assert {animal: legs for legs, animals in LEGS.items() for animal in animals} == ANIMALS


def test_problems_are_seeded_distinct_balanced_and_the_first_of_more():
    asked = lambda count, seed: gym_problems(SETTINGS, "trained", "usual", count, seed)  # noqa: E731
    prompts = [problem.prompt for problem in asked(80, 3)]
    assert prompts == [problem.prompt for problem in asked(80, 3)]
    assert prompts[:10] == [problem.prompt for problem in asked(10, 3)]
    assert len(set(prompts)) == 80
    assert [problem.family.name for problem in asked(8, 3)] == [*SETTINGS.trained] * 2
    for near in (4, 10):  # the package's own draws of seeds that are near each other are the same, but for their places
        assert len(set(prompts) & {problem.prompt for problem in asked(80, near)}) < 4


def test_more_problems_than_there_are_are_refused():
    settings = GymStudent(levels={"count_bits": {"usual": {"n": (1, 5)}}})
    assert len(gym_problems(settings, ("count_bits",), "usual", 5, 0)) == 5
    with pytest.raises(ConfigError, match=r"count_bits \(usual\) seems to have no more than 5.*levels\.count_bits"):
        gym_problems(settings, ("count_bits",), "usual", 6, 0)


def test_a_level_that_the_package_refuses_is_named():
    settings = GymStudent(levels={"leg_counting": {"harder": {"animals": (4, 99)}}})
    with pytest.raises(ConfigError, match=r"refuses leg_counting of \{'min_animals': 4, 'max_animals': 99"):
        gym_problems(settings, ("leg_counting",), "harder", 1, 0)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'raygeo\[gym\]'"):
        gym_problems(SETTINGS, "trained", "usual", 1, 0)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"heldout": ["gcd"]}, "'gcd' stands twice"),
        ({"trained": ["chain_sums"]}, "did you mean 'chain_sum'"),
        ({"levels": {"gcd": {"usual": {"value": [60, 2]}}}}, r"value is \[60, 2\]"),
        ({"levels": {"gcd": {"usual": {"numbers": [1, 2]}}}}, r"numbers is \[1, 2\]; .* of 2 or more"),
        ({"levels": {"base_conversion": {"usual": {"base": [2, 16]}}}}, "give bases up to 10"),
    ],
)
def test_what_cannot_be_is_refused(raw, said):
    with pytest.raises(ValidationError, match=said):
        GymStudent.model_validate(raw)


def test_the_corpus_slips_where_it_should():
    settings = GymStudent(corpus=400, harder_share=0.25, teacher=GymTeacher(corpus=200, slips=Slips()))
    families = dict(zip(settings.names, settings.families(), strict=True))
    known = {
        problem.prompt: (name, level, problem.solution)
        for name, family in families.items()
        for level in ("usual", "harder")
        for problem in islice(draw(family, level, "corpus 0"), 60)
    }
    careful, harder = dict.fromkeys(families, 0), 0
    for prompt, solution in base_corpus(settings):
        name, level, right = known[prompt]
        careful[name] += solution == right
        harder += level == "harder"
    assert all(careful[name] == 50 for name in settings.retained)
    assert all(5 < careful[name] < 48 for name in (*settings.trained, *settings.heldout))
    assert 70 < harder < 130
    taught = teacher_corpus(settings)
    assert {families[name].phrases[0] for name in settings.trained} == {
        phrase for phrase in (family.phrases[0] for family in families.values()) if any(phrase in p for p, _ in taught)
    }


def test_keys_hold_what_the_base_is_made_of_and_no_more():
    base = SETTINGS.keyed
    assert GymStudent(teacher=GymTeacher(corpus=1)).keyed == base
    assert GymStudent(corpus=1).keyed != base
    fewer = {"heldout": (), "retained": ()}
    unasked = {"levels": {"lcm": {"usual": {"value": (2, 9)}}}}
    assert GymStudent(**fewer).keyed == GymStudent(**fewer, **unasked).keyed != base
    assert GymStudent(**unasked).keyed != base


def test_base_and_teacher_are_made_the_same_again(tmp_path):
    training = PretrainSettings(steps=3, batch_size=4, warmup_steps=1)
    settings = GymStudent(
        architecture=ARCHITECTURE.model_copy(update={"context": 384}),
        corpus=24,
        training=training,
        teacher=GymTeacher(corpus=24, training=training),
    )
    weights = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        make_gym_base(settings, folder / "base")
        make_gym_teacher(settings, folder / "base", folder / "teacher")
        weights.append([Checkpoint(folder / who).tensor("model.norm.weight") for who in ("base", "teacher")])
    (base, teacher), again = weights
    assert torch.equal(base, again[0])
    assert torch.equal(teacher, again[1])
    assert not torch.equal(base, teacher)
    assert len(load_tokenizer(tmp_path / "one" / "base")) == len(gym_tokenizer(settings.families()))
