import math
import pickle
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from raygeo.search.space import Choice, Range, Varied
from raygeo.settings import Settings


class Inner(Settings):
    r: int = Field(16, ge=1)
    targets: tuple[str, ...] | Literal["all"] = "all"
    table: dict[str, float] = Field(default_factory=dict)


class First(Settings):
    type: Literal["first"] = "first"
    beta: float = Field(0.1, gt=0)


class Second(Settings):
    type: Literal["second"] = "second"
    scale: bool = False
    most: int | None = Field(2, ge=1)


class Example(Varied):
    fixed = frozenset({"loss", "name"})
    lr: float = Field(1e-5, gt=0)
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    loss: First | Second = Field(First(), discriminator="type")
    name: str | None = None


def read(**raw):
    return Example.model_validate(raw)


def problems(**raw):
    with pytest.raises(ValidationError) as raised:
        read(**raw)
    return [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in raised.value.errors()]


def test_what_varies_is_found_at_any_depth_and_the_rest_is_one_point():
    example = read(
        lr={"log_uniform": ["5e-7", 1e-4]}, kind=["b", "a"], inner={"r": {"uniform": [1, 4]}},
        loss={"type": "second", "most": [1, None]},
    )  # fmt: skip
    assert dict(example.domains) == {
        ("lr",): Range(5e-7, 1e-4, log=True),
        ("kind",): Choice(("b", "a")),
        ("inner", "r"): Range(1, 4),
        ("loss", "most"): Choice((1, None)),
    }
    assert (example.lr, example.kind, example.inner, example.loss) == (5e-7, "b", Inner(r=1), Second(most=1))


def test_values_are_put_in_their_places():
    example = read(lr=[1e-5, 1e-4], inner={"r": [1, 2]})
    assert example.at({("lr",): 3e-5, ("inner", "r"): 8}) == Example(lr=3e-5, inner=Inner(r=8)).model_dump()


def test_a_list_is_a_value_where_the_setting_is_a_list_and_a_mapping_where_it_is_a_mapping():
    example = read(inner={"targets": ["q", "k"], "table": {"uniform": 1.0}})
    assert not example.domains
    assert example.inner == Inner(targets=("q", "k"), table={"uniform": 1.0})


def test_whole_parts_may_be_listed():
    example = read(inner=[None, {"r": 4}])
    assert dict(example.domains) == {("inner",): Choice((None, Inner(r=4).model_dump()))}


def test_a_list_of_one_value_is_that_value():
    assert read(lr=[1e-4]) == read(lr=1e-4)


def test_it_is_written_as_it_was_read():
    example = read(
        lr={"uniform": [1, 2]},
        kind=["a", "b"],
        inner=[None, {"targets": ["q"]}],
        loss={"beta": ["1e-1", 1], "type": "first"},
    )
    written = example.model_dump(mode="json")
    assert written["lr"] == {"uniform": [1.0, 2.0]}
    assert written["loss"] == {"type": "first", "beta": [0.1, 1.0]}
    assert read(**written) == example
    assert read(**written | {"lr": 1}) != example
    assert pickle.loads(pickle.dumps(example)) == example


@pytest.mark.parametrize(
    ("raw", "place", "said"),
    [
        ({"lr": [1, -2]}, "lr", "greater than 0"),
        ({"lr": {"uniform": [1, "x"]}}, "lr", "valid number"),
        ({"lr": []}, "lr", "at least one"),
        ({"lr": {"unifrom": [1, 2]}}, "lr", "{uniform: [low, high]} or {log_uniform: [low, high]}"),
        ({"lr": {"uniform": 1}}, "lr", "{uniform: [low, high]}"),
        ({"lr": {"uniform": [1, 2, 3]}}, "lr", "{uniform: [low, high]}"),
        ({"lr": {"uniform": [2, 1]}}, "lr", "must be below"),
        ({"lr": {"uniform": [1, 1]}}, "lr", "must be below"),
        ({"kind": {"uniform": [1, 2]}}, "kind", "'a' or 'b'"),
        ({"kind": {"uniform": ["a", "b"]}}, "kind", "only a number"),
        ({"kind": ["a", "c"]}, "kind", "'a' or 'b'"),
        ({"inner": {"r": {"uniform": [1.5, 3]}}}, "inner.r", "valid integer"),
        ({"inner": {"r": {"log_uniform": [0, 3]}}}, "inner.r", "greater than or equal to 1"),
        ({"inner": {"rr": [1, 2]}}, "inner.rr", "Extra inputs"),
        ({"inner": [{"r": 1}, {"rr": 2}]}, "inner.rr", "Extra inputs"),
        ({"loss": {"type": "second", "scale": {"uniform": [0, 1]}}}, "loss.second.scale", "only a number"),
        ({"loss": {"type": "second", "beta": [1, 2]}}, "loss.second.beta", "Extra inputs"),
        ({"loss": {"type": ["first", "second"]}}, "loss", "does not match any of the expected tags"),
        ({"loss": [{"type": "first"}]}, "loss", "valid dictionary"),
        ({"name": ["x", "y"]}, "name", "valid string"),
        ({"other": [1, 2]}, "other", "Extra inputs"),
    ],
)  # fmt: skip
def test_every_value_is_checked_as_the_setting_would_be(raw, place, said):
    [(where, message)] = problems(**raw)
    assert where in (place, place.replace("second.", ""))
    assert said in message


def test_all_wrong_values_are_named_at_once():
    assert [place for place, _ in problems(lr=[1, -1], kind=["a", "c", "d"])] == ["lr", "kind", "kind"]


def test_a_logarithmic_range_lies_above_zero():
    class Signed(Varied):
        bias: float = 0.0

    with pytest.raises(ValidationError, match="above zero"):
        Signed.model_validate({"bias": {"log_uniform": [0, 1]}})


def test_quantiles_of_a_range():
    assert [Range(0.0, 2.0).at(u) for u in (0, 0.25, 0.5)] == [0.0, 0.5, 1.0]
    assert [Range(1e-6, 1e-2, log=True).at(u) for u in (0, 0.5, 0.25)] == pytest.approx([1e-6, 1e-4, 1e-5], rel=1e-3)
    assert [Range(1, 4).at(u / 8) for u in range(8)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [Range(1, 3, log=True).at(u) for u in (0, 0.49, 0.51, 0.79, 0.8, 1 - 1e-16)] == [1, 1, 2, 2, 3, 3]
    assert [Choice("abc").at(u) for u in (0, 0.34, 0.99)] == ["a", "b", "c"]


def test_drawn_numbers_have_four_digits_and_stay_in_the_range():
    drawn = [Range(1.00004e-5, 1.1e-5).at(u / 100) for u in range(100)]
    assert all(f"{value:.4g}" == f"{value:g}" for value in drawn[1:])
    assert min(drawn) == 1.00004e-5
    assert max(drawn) <= 1.1e-5


def test_sizes():
    assert (Choice((1, 2)).size, Range(1, 4).size, Range(1.0, 4.0).size) == (2, 4, math.inf)
