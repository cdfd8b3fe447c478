import numpy as np
from view_cases import axes_of, titles, view_of

from raygeo.analyses.layer_cka import report


def test_layers_of_the_base_are_rows_and_the_base_comes_first():
    rows = [
        {"run_a": "base", "run_b": name, "layer_a": a, "layer_b": b, "cka": value}
        for name in ("b", "base")
        for a, b, value in ((0, 0, 1.0), (0, 4, 0.2), (4, 0, 0.3), (4, 4, 0.9))
    ] + [{"run_a": "sft", "run_b": "b", "layer_a": 0, "layer_b": 0, "cka": 0.5}]
    first, second, _ = axes_of(report.layer_cka, view_of(layer_cka=rows))
    assert titles([first, second]) == ["base", "b"]
    np.testing.assert_allclose(second.collections[0].get_array().reshape(2, 2), [[1.0, 0.2], [0.3, 0.9]])
    assert [label.get_text() for label in second.get_yticklabels()] == ["0", "4"]
