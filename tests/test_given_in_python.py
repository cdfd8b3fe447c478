"""What ``raygeo.run`` and ``raygeo.compare`` take in Python beyond what a command line says, and what they refuse."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import pytest

import raygeo
from raygeo.errors import ConfigError, NoStoreError
from raygeo.pipeline.comparison import load_comparison, plan_comparison
from raygeo.pipeline.config import load_study
from raygeo.settings import as_plain


def study(**changes):
    return {
        "name": "test",
        "student": {"model": Path("models") / "student"},
        "rollouts": {"read": ({"type": "jsonl", "path": Path("rollouts.jsonl")},)},
        "training": OrderedDict(steps=2),
        "runs": [{"loss": {"type": "sft"}}],
    } | changes


def test_paths_may_stand_where_a_file_has_texts():
    given = study()
    loaded = load_study(given, store=Path("store") / "x")
    assert (loaded.student.model, loaded.rollouts.read[0].path, loaded.store) == (
        "models/student", "rollouts.jsonl", "store/x",
    )  # fmt: skip
    assert given == study(), "what was given is as it was"


@pytest.mark.parametrize(
    "overrides",
    ["training.lr=5e-4", ["training.lr=5e-4"], {"training.lr": 5e-4}, {"training": {"steps": 2, "lr": 5e-4}}],
)
def test_overrides_are_texts_one_text_or_values_by_place(overrides):
    [spec] = load_study(study(), overrides).specs()
    assert (spec.training.lr, spec.training.steps) == (5e-4, 2)


def test_values_by_place_reach_into_lists_and_may_be_paths():
    loaded = load_study(study(), {"rollouts.read.0.path": Path("other.jsonl"), "runs.0.seed": (0, 1)})
    assert loaded.rollouts.read[0].path == "other.jsonl"
    assert [spec.training.seed for spec in loaded.specs()] == [0, 1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training.lr": -1}, r"- override 'training\.lr': training\.lr: Input should be greater than 0"),
        ({"runs.7.lr": 1}, r"override 'runs\.7\.lr': there is nothing to set at 'runs\.7\.lr'"),
        (None, "overrides are texts as 'a.b=c', or a mapping of places 'a.b' to values, not None"),
        (3, "overrides are texts as 'a.b=c'"),
        ([("training.lr", 3)], "overrides are texts as 'a.b=c'"),
    ],
)
def test_what_is_wrong_with_overrides_is_said(overrides, said):
    with pytest.raises(ConfigError, match=said):
        raygeo.run(study(), overrides=overrides)


@pytest.mark.parametrize(
    ("given", "kind"), [(None, "NoneType"), ([{"name": "x"}], "list"), (3, "int"), (b"study.yaml", "bytes")]
)
def test_what_is_no_study_is_refused(given, kind):
    with pytest.raises(ConfigError, match=f"a study is given as a file, .* not as {kind}"):
        raygeo.run(given)


def test_a_mapping_that_holds_itself_is_refused():
    given = study()
    given["caveats"] = [given]
    with pytest.raises(ConfigError, match="more than 20,000 values"):
        raygeo.run(given)


@pytest.mark.parametrize(
    ("models", "named"),
    [
        ("runs/ft1", {"ft1": "runs/ft1"}),
        (Path("runs/ft1"), {"ft1": "runs/ft1"}),
        (("runs/a", Path("runs/b")), {"a": "runs/a", "b": "runs/b"}),
        ({"x": Path("runs/a"), "y": "runs/b"}, {"x": "runs/a", "y": "runs/b"}),
        (iter([Path("runs/a"), "runs/b"]), {"a": "runs/a", "b": "runs/b"}),
    ],
)
def test_models_are_one_several_or_named(models, named):
    planned = plan_comparison(Path("base"), models, store=Path("there"), solutions=Path("s.jsonl"))
    assert {compared.name: compared.model for compared in planned.models} == named
    assert (planned.base, planned.store, planned.solutions.path) == ("base", "there", "s.jsonl")


def test_a_store_is_a_path():
    with pytest.raises(ConfigError, match="a store is given as a path or a URI, not as NoneType"):
        raygeo.open(None)
    with pytest.raises(NoStoreError, match="no store at"):
        raygeo.open(Path("nowhere"))


@pytest.mark.parametrize("models", [[], {}, ()])
def test_a_comparison_without_models_is_refused(models):
    with pytest.raises(
        ConfigError, match=r"nothing to compare with 'base'; give models .* raygeo compare BASE MODEL MODEL"
    ):
        raygeo.compare("base", models)


@pytest.mark.parametrize(
    ("base", "models"), [("base", None), ("base", 3), ("base", [None]), ("base", {"x": None}), (None, ["a"])]
)
def test_what_is_no_model_is_refused(base, models):
    with pytest.raises(ConfigError, match="are given as folders or hub ids, each a text"):
        raygeo.compare(base, models)


def test_an_override_of_a_comparison_is_named_where_it_is_wrong():
    with pytest.raises(
        ConfigError, match=r"- --set geometry\.nrms={}: geometry\.nrms: unknown key; did you mean 'norms'"
    ):
        raygeo.compare("base", ["a"], overrides="geometry.nrms={}")


@pytest.mark.parametrize("text", ["name: x\nruns: []\n", "rollouts: {sample: {}}\n"])
def test_a_study_is_not_taken_for_a_comparison(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"'{file}' holds a study; run it by raygeo run {file}"):
        load_comparison(str(file))


@pytest.mark.parametrize("text", ["base: a\n", "models: [{name: b, model: b}]\nstore: x\n"])
def test_a_comparison_is_not_taken_for_a_study(tmp_path, text):
    file = tmp_path / "comparison.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"'{file}' holds a comparison; run it by raygeo compare {file}"):
        load_study(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n- {name: x, model: a}\n- {name: x, model: b}\n", r"4: models\.1\.name: x names more than one model"),
        ("models:\n- {name: base, model: a}\n", r"3: models\.0\.name: a model cannot be named 'base'"),
        ("models: [{name: x, model: a}]\nreference_run: y\n", r"3: reference_run: the reference 'y' is none of x"),
        ("models: [a, b]\n", r"2: models\.0: write a mapping of settings \(name, model, trained\) \(read 'a'\)"),
        ("models: [{name: x, model: a}]\ngeometry:\n  outputs: {}\n", r"4: geometry\.outputs is measured on texts"),
    ],
)
def test_what_is_wrong_in_the_file_of_a_comparison_is_named_with_its_line(tmp_path, text, said):
    file = tmp_path / "comparison.yaml"
    file.write_text(f"base: a\n{text}")
    with pytest.raises(ConfigError, match=rf"- {file}:{said}"):
        load_comparison(str(file))


def test_mappings_that_make_their_values_when_asked_are_each_themselves():
    class Lazy(Mapping):
        def __init__(self, **made):
            self.made = made

        def __getitem__(self, name):
            return self.made[name]()

        def __iter__(self):
            return iter(self.made)

        def __len__(self):
            return len(self.made)

    sections = {f"section{n}": lambda n=n: {"number": n, "inner": {"number": -n}} for n in range(50)}
    plain = as_plain(Lazy(**sections))
    assert plain == {name: make() for name, make in sections.items()}
    shared = {"a": 1}
    copied = as_plain({"x": shared, "y": shared})
    assert copied["x"] is copied["y"] is not shared
