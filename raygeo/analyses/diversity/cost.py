"""What the analysis needs, before it is run."""

from raygeo.analyses.diversity.workload import DiversitySettings
from raygeo.footprint.need import LIGHTER, Need, Scale, decoding_peak, decoding_work, halves


def cost(settings: DiversitySettings, scale: Scale) -> list[Need]:
    """All answers drawn here, each as long as it may be; nothing of the kind where the evaluation's are taken."""
    problems = scale.problems.first(settings.problems)
    tokens, rows = settings.answer_tokens, settings.generation_batch_size
    rows = max(1, min(rows, problems.count * settings.samples))
    work = decoding_work(scale.model, problems, tokens, rows, settings.samples) * scale.runs
    device = scale.resident() | {"a batch": decoding_peak(scale.model, rows, max(1, problems.longest), tokens)}
    remedies = tuple(f"geometry.diversity.generation_batch_size={smaller}" for smaller in halves(rows))
    return [
        Need(
            "geometry.diversity (at most)",
            scale.runs,
            work + scale.mixing(scale.runs),
            device,
            rate="diversity",
            remedies=(*remedies, *LIGHTER),
        )
    ]
