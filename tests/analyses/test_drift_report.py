import numpy as np
from view_cases import axes_of, titles, view_of

from raygeo.analyses.drift import report

ROWS = [
    {"run": "dpo", "layer": layer, "n": 200, "tokens": 6412, "cosine": 1 - layer / 10, "change": layer / 5}
    | {"cosine_low": 0.9 - layer / 10, "cosine_high": 1.1 - layer / 10, "change_low": 0.0, "change_high": layer / 4}
    for layer in (2, 0, 1)
]


def test_both_measures_of_drift_stand_layer_by_layer_with_their_bands():
    axes = axes_of(report.drift, view_of(drift=ROWS))
    assert titles(axes) == ["cosine with the base's hidden state", "|h − h base| / |h base|"]
    for ax, expected, highest in zip(axes, ([1.0, 0.9, 0.8], [0.0, 0.2, 0.4]), (1.1, 0.5), strict=True):
        [line], [band] = ax.lines, ax.collections
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert band.get_paths()[0].vertices[:, 1].max() == highest


def test_the_caveat_names_how_many_tokens_there_were():
    assert "is over 6\u2009412 tokens" in report.uncorrected(view_of(drift=ROWS))[0]
