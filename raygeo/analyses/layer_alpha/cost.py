"""What the analysis needs, before it is run."""

from raygeo.analyses.layer_alpha.workload import LayerAlphaSettings
from raygeo.footprint.matrices import weights_decomposed
from raygeo.footprint.need import Need, Scale


def cost(settings: LayerAlphaSettings, scale: Scale) -> list[Need]:
    """Eigenvalues of every chosen matrix of the base, of every run, and with a random delta for each.

    Of full deltas the delta itself is decomposed too, for the singular values of the random one.
    """
    return [
        weights_decomposed(
            "layer_alpha", scale, settings.chooses, 1 + (2 + (scale.rank is None)) * scale.trained, copies=6
        )
    ]
