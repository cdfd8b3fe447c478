"""What the analysis needs, before it is run."""

from raygeo.analyses.norms.workload import NormSettings
from raygeo.footprint.matrices import weights_needed
from raygeo.footprint.need import Need, Scale


def cost(settings: NormSettings, scale: Scale) -> list[Need]:
    """Reads every delta once, and decomposes it: the factors of LoRA, or whole matrices."""
    return [weights_needed("norms", scale, scale.trained, decompositions=1)]
