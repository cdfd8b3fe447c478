"""What the analysis needs, before it is run."""

from raygeo.analyses.outputs.workload import OutputSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: OutputSettings, scale: Scale) -> list[Need]:
    """A pass over the probe a run, two a pair."""
    pairs = scale.chosen_pairs(settings.pairs)
    units = pairs + scale.runs
    return [scale.along("outputs", units, (2 * pairs + scale.runs) / units, scale.solutions, settings)]
