"""What the analysis needs, before it is run."""

from raygeo.analyses.heads.workload import HeadSettings
from raygeo.footprint.need import Need, Scale
from raygeo.geometry.weights.heads import Layout


def cost(settings: HeadSettings, scale: Scale) -> list[Need]:
    """Two passes over the probe for each head and each control, and two more.

    Raises:
        StudentError: the heads of the student's attention cannot be told apart.
    """
    model = scale.model
    Layout.of(model.config, {name: tuple(value.shape) for name, value in model.model.named_parameters()})
    heads = settings.largest + settings.random
    points = 2 + 2 * heads * (1 + settings.controls)
    return [scale.along("heads", scale.trained, points, scale.solutions, settings)]
