"""What the analysis needs, before it is run."""

from raygeo.analyses.similarity.workload import SimilaritySettings
from raygeo.footprint.matrices import weights_needed
from raygeo.footprint.need import Need, Scale


def cost(settings: SimilaritySettings, scale: Scale) -> list[Need]:
    """Reads every delta once for all pairs."""
    return [weights_needed("similarity", scale, 1, products=scale.trained)]
