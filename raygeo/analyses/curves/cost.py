"""What the analysis needs, before it is run."""

from dataclasses import replace

from raygeo.analyses.curves.workload import CurvesSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: CurvesSettings, scale: Scale) -> list[Need]:
    """A curve a pair, if every straight line had a barrier: a gradient of some texts a step, then two lines."""
    pairs = scale.pairs if isinstance(settings.pairs, str) else len(settings.pairs)
    half = scale.solutions.first(max(1, scale.solutions.count // 2))
    need = scale.along("curves", pairs, 2 * settings.points, half, settings)
    rows = min(settings.batch_size, half.count)
    held = scale.model.gradient(rows, half.longest).peak
    work = scale.gradients(half.first(rows), pairs * settings.steps)
    device = {**need.device, "a batch with its graph": held}
    device.pop("a batch")
    return [replace(need, what="geometry.curves (at most)", work=need.work + work, device=device)]
