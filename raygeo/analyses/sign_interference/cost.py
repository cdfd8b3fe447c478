"""What the analysis needs, before it is run."""

import math

from raygeo.analyses.sign_interference.workload import SignInterferenceSettings
from raygeo.footprint.need import Need, Scale, Work

_PRODUCTS = 6
"""Of N deltas' entries with each other, a block at a time."""
_COPIES = 8
"""Of a block of at most 4 M values in fp64."""


def cost(settings: SignInterferenceSettings, scale: Scale) -> list[Need]:
    """Multiplies LoRA factors out, block by block, and every two deltas with each other, whatever pairs are shown."""
    shapes = scale.model.shapes.values()
    entries = sum(map(math.prod, shapes))
    each = 2.0 * (scale.rank or 0) + _PRODUCTS * 2.0 * scale.trained
    longest = max((shape[-1] for shape in shapes if shape), default=0)
    host = {"a block of entries": _COPIES * 8 * max(1 << 22, longest * scale.trained)}
    return [
        Need(
            "geometry.sign_interference",
            len(scale.model.shapes),
            Work(each * entries * scale.trained, "fp64"),
            host=host,
            on="cpu",
            rate="sign-interference",
        )
    ]
