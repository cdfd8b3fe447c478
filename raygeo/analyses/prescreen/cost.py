"""What the pre-screen needs, before it is done."""

from raygeo.analyses.prescreen.workload import Prescreen, PrescreenSettings
from raygeo.footprint.need import Need, Scale, Work

_COLUMNS = 60
"""Metrics and outcomes of a study, about."""


def cost(settings: PrescreenSettings, scale: Scale) -> list[Need]:
    """Ranks of all metrics in every resample, and a product with every permutation; no weights are read."""
    each = scale.trained * _COLUMNS
    work = Work(each * (50.0 * settings.bootstrap + 10.0 * settings.permutations), "fp64")
    return [Need("geometry.prescreen", 1, work, on="cpu", rate=Prescreen.name)]
