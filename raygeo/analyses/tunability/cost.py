"""What the analysis needs, before it is run."""

from dataclasses import replace

from torch import nn

from raygeo.analyses.tunability.workload import TunabilitySettings
from raygeo.footprint.need import DIVIDED, LIGHTER, Need, Scale, halves
from raygeo.models.loading import model_shape


def cost(settings: TunabilitySettings, scale: Scale) -> list[Need]:
    """Gradients of every step's texts, and two passes over those measured, from every run's weights and the base's.

    Texts are taken to be those of the probe, whatever a file has. What a graph takes is counted for gradients of what
    deltas touch; adapters, their gradients and moments are added: 16 bytes a number.
    """
    full = settings.rank is None
    scale = scale.exactly() if full else scale
    model, texts = scale.model, scale.solutions
    half = texts.first(max(1, texts.count // 2))
    units = scale.runs * len(settings.seeds)
    rows = min(settings.micro_batch_size, half.count)
    step = replace(half, count=min(settings.batch_size, half.count))
    work = scale.gradients(step, units * settings.steps) + scale.scoring(half, 2 * units) + scale.mixing(units)
    student = scale.student(model.dtype, checkpointing=True) if settings.gradient_checkpointing else model
    device = {**scale.resident(), "a micro-batch with its graph": student.gradient(rows, half.longest).peak}
    if full:
        device["base copy of what deltas touch"] = model.parameters * 4
        device["gradients and moments"] = 3 * model.parameters * 4
    else:
        device["adapters, gradients and moments"] = 16 * _adapters(scale, settings.rank or 0)
    remedies = tuple(f"geometry.tunability.micro_batch_size={smaller}" for smaller in halves(rows))
    remedies += () if settings.gradient_checkpointing else ("geometry.tunability.gradient_checkpointing=true",)
    remedies += ("geometry.tunability.rank=16", *DIVIDED) if full else LIGHTER
    return [Need("geometry.tunability", units, work, device, rate="tunability", remedies=remedies)]


def _adapters(scale: Scale, rank: int) -> int:
    """Numbers of adapters of this rank on all linear layers."""
    linear = (m for m in model_shape(scale.model.config).modules() if isinstance(m, nn.Linear))
    return rank * sum(layer.in_features + layer.out_features for layer in linear)
