"""What CKA needs, before it is run."""

from raygeo.analyses.cka.representations import FeatureSettings
from raygeo.analyses.cka.workload import CKASettings
from raygeo.footprint.need import LIGHTER, Need, Scale, halves, rate_name


def cost(settings: CKASettings, scale: Scale) -> list[Need]:
    """A pass a run; kernels of every run on the CPU."""
    return features_needed("cka", scale.chosen_pairs(settings.pairs), settings, scale)


def features_needed(name: str, units: int, settings: FeatureSettings, scale: Scale) -> list[Need]:
    """One pass a run; on the CPU its features while they are made, and its kernels for good (``Representations``)."""
    model, texts = scale.model, scale.solutions
    rows = min(settings.forward_batch_size, texts.count)
    vectors = texts.count * (settings.tokens_per_text if settings.pool == "tokens" else 1)
    layers = model.layers + 1
    return [
        Need(
            f"geometry.{name}",
            units,
            scale.scoring(texts, scale.runs) + scale.mixing(scale.runs),
            scale.resident() | {"hidden states of a batch": model.states(rows, texts.longest).peak},
            host={
                "features of one run": 3 * 4 * layers * vectors * model.width,
                "kernels of all runs": 24 * layers * vectors**2 * scale.runs,
            },
            rate=rate_name(name),
            remedies=(
                *(f"geometry.{name}.forward_batch_size={less}" for less in halves(rows)),
                *(f"probes.sequences={less}" for less in halves(texts.count)[:2]),
                *LIGHTER,
            ),
        )
    ]
