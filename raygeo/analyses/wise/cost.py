"""What the analysis needs, before it is run."""

from raygeo.analyses.wise.workload import WiseSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: WiseSettings, scale: Scale) -> list[Need]:
    """A pass over the probe, and answers, at every multiple of every delta."""
    alphas = len(settings.alphas)
    return [scale.along("wise", scale.trained, alphas, scale.solutions, settings, answered=alphas)]
