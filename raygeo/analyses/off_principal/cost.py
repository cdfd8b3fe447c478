"""What the analysis needs, before it is run."""

from raygeo.analyses.off_principal.workload import OffPrincipalSettings
from raygeo.footprint.matrices import decomposition, matrices
from raygeo.footprint.need import Need, Scale, Work


def cost(settings: OffPrincipalSettings, scale: Scale) -> list[Need]:
    """Singular values of every chosen matrix, of the base and of every run, in fp64 on the CPU."""
    chosen = {name: shape for name, shape in matrices(scale).items() if settings.chooses(name)}
    flops = sum(decomposition(shape) for shape in chosen.values()) * 2.0 * scale.runs
    largest = max((rows * columns for rows, columns in chosen.values()), default=0)
    return [
        Need(
            "geometry.off_principal",
            len(chosen),
            Work(flops, "fp64"),
            host={"a matrix, its decomposition and masks": 5 * largest * 8},
            on="cpu",
            rate="off-principal",
        )
    ]
