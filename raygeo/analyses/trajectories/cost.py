"""What the analysis needs, before it is run."""

from raygeo.analyses.trajectories.workload import TrajectorySettings
from raygeo.footprint.matrices import weights_needed
from raygeo.footprint.need import Need, Scale


def cost(settings: TrajectorySettings, scale: Scale) -> list[Need]:
    """Reads every kept delta, with its neighbours and the reference's."""
    return [weights_needed("trajectories", scale, scale.trained, products=3 * scale.snapshots)]
