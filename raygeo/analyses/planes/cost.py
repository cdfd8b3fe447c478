"""What the analysis needs, before it is run."""

from raygeo.analyses.planes.workload import PlanesSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: PlanesSettings, scale: Scale) -> list[Need]:
    """A row of a plane's grid a task, a pass over some texts a point."""
    planes = scale.trained - 1 if settings.planes == "reference" else len(settings.planes)
    texts = scale.solutions.first(settings.sequences)
    return [scale.along("planes", planes * settings.points, settings.points, texts, settings)]
