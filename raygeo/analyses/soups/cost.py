"""What the analysis needs, before it is run."""

from raygeo.analyses.soups.workload import SoupSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: SoupSettings, scale: Scale) -> list[Need]:
    """A pass over the probe, and answers, at every run and average; two more at the greedy soup's steps."""
    averages = scale.runs + 2 * (scale.trained > 1)
    points = 1 + 2 * scale.trained / averages
    return [scale.along("soups", averages, points, scale.solutions, settings, answered=1.0)]
