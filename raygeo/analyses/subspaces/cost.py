"""What the analysis needs, before it is run."""

from raygeo.analyses.subspaces.workload import SubspaceSettings
from raygeo.footprint.matrices import matrices, weights_needed
from raygeo.footprint.need import Need, Scale


def cost(settings: SubspaceSettings, scale: Scale) -> list[Need]:
    """Decomposes every matrix of every delta."""
    return [weights_needed("subspaces", scale, len(matrices(scale)), decompositions=1, products=scale.trained)]
