"""What the analysis needs, before it is run."""

from dataclasses import replace

from raygeo.analyses.compressibility.workload import CompressibilitySettings
from raygeo.footprint.need import Need, Scale, Work
from raygeo.models.delta import layer_index
from raygeo.models.loading import model_shape

_SWEEP = 20
"""Operations an entry that merging and compressing, or counting, take."""


def cost(settings: CompressibilitySettings, scale: Scale) -> list[Need]:
    """A pass over the probe, and answers, at every point of every run's weights, of its delta, and of the base's."""
    points = len(set(settings.sparsities)) + len(set(settings.bits))
    passes = scale.trained * (1 + 2 * points) + 1 + points
    each = passes / scale.runs
    need = scale.along("compressibility", scale.runs, each, scale.solutions, settings, answered=each)
    blocks = [
        v for n, v in model_shape(scale.model.config).named_parameters() if v.ndim >= 2 and layer_index(n) is not None
    ]
    entries = sum(value.numel() for value in blocks)
    largest = max((value.numel() for value in blocks), default=0)
    work = Work(float(_SWEEP * entries * passes), scale.dtype)
    device = {
        **need.device,
        "base copy of what deltas touch": 0,
        "base copy of what is compressed": max(entries, scale.model.touched) * scale.model.dtype.itemsize,
        "compressing one matrix": 6 * 4 * largest,
    }
    del device["base copy of what deltas touch"]
    return [replace(need, work=need.work + work, device=device)]
