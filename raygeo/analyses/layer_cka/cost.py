"""What the analysis needs, before it is run."""

from raygeo.analyses.cka.cost import features_needed
from raygeo.analyses.layer_cka.workload import LayerCKASettings
from raygeo.footprint.need import Need, Scale


def cost(settings: LayerCKASettings, scale: Scale) -> list[Need]:
    """A pass a run; kernels of every run on the CPU."""
    return features_needed("layer_cka", 2 * scale.trained, settings, scale)
