"""What the analysis needs, before it is run."""

import torch

from raygeo.analyses.critical_sharpness.workload import CriticalSettings
from raygeo.footprint.need import DIVIDED, Need, Scale, halves

PASSES = 12
"""Passes along one line: two at first, about four until its curvature is seen, two to bracket, three to bisect."""


def cost(settings: CriticalSettings, scale: Scale) -> list[Need]:
    """A gradient a run, and passes along two lines a run and the random ones beside them."""
    scale = scale.exactly()
    model, texts = scale.model, scale.curvature
    student = scale.student(torch.float32, checkpointing=settings.gradient_checkpointing)
    rows = min(settings.batch_size, texts.count)
    passes = PASSES * (scale.runs + scale.trained) * (1 + settings.draws)
    work = scale.gradients(texts, scale.runs) + scale.scoring(texts, passes) + scale.mixing(passes)
    device = scale.resident() | {
        "a batch with its graph": student.gradient(rows, texts.longest).peak,
        "the gradient, its sum, and a random direction": 3 * model.touched * model.dtype.itemsize,
    }
    smaller = tuple(f"geometry.critical_sharpness.batch_size={less}" for less in halves(rows))
    smaller += ("geometry.critical_sharpness.gradient_checkpointing=true", *DIVIDED)
    what = "geometry.critical_sharpness"
    return [Need(what, scale.runs, work, device, rate="critical-sharpness", remedies=smaller)]
