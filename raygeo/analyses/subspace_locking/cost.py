"""What the analysis needs, before it is run."""

from raygeo.analyses.subspace_locking.workload import SubspaceLockingSettings
from raygeo.footprint.matrices import weights_needed
from raygeo.footprint.need import Need, Scale


def cost(settings: SubspaceLockingSettings, scale: Scale) -> list[Need]:
    """Decomposes every matrix of every kept delta: the factors of LoRA, or whole matrices."""
    return [weights_needed("subspace_locking", scale, scale.trained, decompositions=scale.snapshots + 1)]
