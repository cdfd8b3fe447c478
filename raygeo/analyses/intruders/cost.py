"""What the analysis needs, before it is run."""

from raygeo.analyses.intruders.workload import IntruderSettings
from raygeo.footprint.matrices import weights_decomposed
from raygeo.footprint.need import Need, Scale


def cost(settings: IntruderSettings, scale: Scale) -> list[Need]:
    """Decomposes every chosen matrix of the base, of every run, and with a random delta for each.

    Of full deltas the delta itself is decomposed too, for the singular values of the random one.
    """
    return [
        weights_decomposed(
            "intruders", scale, settings.chooses, 1 + (2 + (scale.rank is None)) * scale.trained, copies=7
        )
    ]
