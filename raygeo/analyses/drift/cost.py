"""What the analysis needs, before it is run."""

from dataclasses import replace

from raygeo.analyses.drift.workload import DriftSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: DriftSettings, scale: Scale) -> list[Need]:
    """Two passes a run, whose hidden states of all layers are held side by side."""
    texts = scale.solutions
    rows = min(settings.batch_size, texts.count)
    states = scale.model.states(rows, texts.longest)
    need = scale.along("drift", scale.trained, 2, texts, settings)
    return [replace(need, device=scale.resident() | {"hidden states of run and base": states.peak + states.kept})]
