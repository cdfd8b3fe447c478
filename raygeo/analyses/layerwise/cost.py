"""What the analysis needs, before it is run."""

from raygeo.analyses.layerwise.workload import LayerwiseSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: LayerwiseSettings, scale: Scale) -> list[Need]:
    """A pass over the probe for every part moved, and all, by each alpha."""
    if isinstance(settings.pairs, str):
        pairs = scale.runs * (scale.runs - 1) if settings.pairs == "all" else scale.trained
    else:
        pairs = len(settings.pairs)
    parts = scale.model.layers + 1 if settings.parts == "block" else 8
    points = 2 + (parts + 1) * len({*settings.alphas, 1.0})
    return [scale.along("layerwise", pairs, points, scale.solutions, settings)]
