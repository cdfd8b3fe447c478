import json

import pytest
import torch
from view_cases import axes_of, view_of

from raygeo.analyses.norms import report


def test_norms_are_root_sums_of_squares_of_a_layer():
    place = {"run": "b", "layer": 0}
    rows = [
        place | {"module": module, "scope": "module", "norm": norm, "base_norm": base}
        for module, norm, base in (("q", 3.0, 6.0), ("k", 4.0, 8.0))
    ]
    rows.append(place | {"module": "", "scope": "layer", "norm": 7.0, "base_norm": 7.0})
    absolute, relative = axes_of(report.norms, view_of(deltas=rows))
    assert absolute.lines[0].get_ydata().item() == pytest.approx(5.0)
    assert relative.lines[0].get_ydata().item() == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("stored", "dtype", "low", "high"),
    [("BF16", torch.bfloat16, "0.11", "0.23"), ("F16", torch.float16, "0.014", "0.028")],
)
def test_what_is_said_of_rounding_is_what_rounding_does(stored, dtype, low, high):
    """Uniform rounding errors of half a spacing have a root mean square of the spacing over root 12."""
    run = {"run": "a", "key": "a", "status": "finished", "params": json.dumps({"stored": stored})}
    delta = {"run": "a", "module": "", "scope": "global", "norm": 1.0, "base_norm": 100.0, "relative_norm": 0.01}
    [said] = report.rounded(view_of(runs=[run], deltas=[delta]))
    assert f"rounding alone is {low} to {high} % of the base norm" in said
    weights = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert float(low) < 100 * ((weights.to(dtype) - weights).norm() / weights.norm()).item() < float(high)
