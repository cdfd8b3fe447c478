"""What the analysis needs, before it is run."""

from raygeo.analyses.rank_one.workload import RankOneSettings
from raygeo.footprint.matrices import weights_needed
from raygeo.footprint.need import Need, Scale


def cost(settings: RankOneSettings, scale: Scale) -> list[Need]:
    """Reads every kept delta, and multiplies it with every other of its run."""
    return [weights_needed("rank_one", scale, scale.trained, products=(scale.snapshots + 1) ** 2)]
