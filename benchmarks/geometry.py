"""The cases of ``benchmarks.run geometry``: what each compares, as a function of the rounds, and its table."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from benchmarks import curvature, factored, scaling
from raygeo.analyses.curvature.settings import CurvatureSettings


@dataclass(frozen=True)
class Comparison:
    """``measure(rounds)`` gives what goes into the JSON file, ``show`` makes a table of it."""

    measure: Callable[[int], Any]
    show: Callable[[Any], Table]


def comparisons(threads: int, peers: str | None, tiny: bool) -> dict[str, Comparison]:
    """All comparisons by name; ``tiny`` ones take seconds and measure nothing. ``peers`` is a folder with packages."""
    products, vocabulary, spectrum = (
        replace(case, peers=peers) for case in (curvature.PRODUCTS, curvature.VOCABULARY, curvature.SPECTRUM)
    )
    deltas, features, fanned = factored.QWEN3_4B, factored.Features(), scaling.Case()
    if tiny:
        small: dict[str, Any] = {"texts": 4, "batch_size": 2, "completions": (2, 12)}
        products = replace(products, architecture=curvature.SMALL, columns=2, **small)
        vocabulary = replace(vocabulary, architecture=curvature.SMALL, columns=2, vocabulary=200, **small)
        spectrum = replace(
            spectrum, parameters=("model.norm.weight",), top_k=3, lanczos_steps=30, probe_steps=10, **small
        )
        deltas = factored.Deltas({"k_proj": (48, 64), "o_proj": (64, 80)}, layers=2, runs=3, rank=4, angles=2)
        features = factored.Features(runs=3, layers=2, texts=16, width=24)
        settings = CurvatureSettings(spaces=("delta", "blocks"), max_steps=2, slq_probes=0)
        fanned = scaling.Case(runs=2, texts=2, settings=settings, tasks_an_actor=5)
    return {
        "products": Comparison(lambda rounds: curvature.compare(products, rounds, threads), curvature.table),
        "vocabulary": Comparison(lambda rounds: curvature.compare(vocabulary, rounds, threads), curvature.table),
        "spectrum": Comparison(lambda rounds: curvature.compare(spectrum, rounds, threads), curvature.table),
        "deltas": Comparison(lambda rounds: factored.compare_deltas(deltas, rounds), factored.table),
        "cka": Comparison(lambda rounds: factored.compare_cka(features, rounds), factored.table),
        "scaling": Comparison(lambda rounds: scaling.measure(fanned, rounds), scaling.table),
    }
