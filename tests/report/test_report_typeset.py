import math

import pytest

from raygeo.report import typeset


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (typeset.percent, 0.41666, "41.7 %"),
        (typeset.percent, 0.0, "0.0 %"),
        (typeset.points, 0.0321, "+3.2"),
        (typeset.points, -0.277, "−27.7"),
        (typeset.points, -0.0001, "0.0"),
        (typeset.fixed, -0.0802, "−0.08"),
        (typeset.fixed, -0.001, "0.00"),
        (typeset.significant, 2.9449, "2.94"),
        (typeset.significant, 0.730, "0.730"),
        (typeset.significant, 99.96, "100"),
        (typeset.significant, 2662.8, "2660"),
        (typeset.significant, 1.234e-4, "1.23 × 10⁻⁴"),
        (typeset.significant, -6.02e23, "−6.02 × 10²³"),
        (typeset.significant, 0.0, "0"),
        (typeset.p_value, 0.0004, "< 0.001"),
        (typeset.p_value, 0.031, "0.031"),
        (typeset.count, 12345, "12\u2009345"),
        (typeset.rate, 5e-5, "5e-05"),
        (typeset.duration, 3.14, "3.1 s"),
        (typeset.duration, 59.7, "1 min 0 s"),
        (typeset.duration, 3723, "1 h 2 min"),
    ],
)
def test_numbers_are_written_for_people(write, value, text):
    assert write(value) == text


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize(
    "write",
    [typeset.percent, typeset.points, typeset.fixed, typeset.significant, typeset.p_value, typeset.count, typeset.rate],
)
def test_what_is_missing_is_a_dash_and_never_a_number(write, value):
    assert write(value) == "–"


def test_intervals_need_both_ends_and_drop_the_unit():
    assert typeset.interval(0.3692, 0.4671, typeset.percent) == "[36.9, 46.7]"
    assert typeset.interval(None, 0.4) == ""
    assert typeset.interval(0.4, math.nan) == ""
