"""What training did to weights: the mathematics of raygeo's analyses, for notebooks and programs of your own.

    from raygeo.geometry import cosine, open_delta

    cosine(open_delta("sft", "base"), open_delta("dpo", "base"))

The names below are the public ones; ``docs/notebook.md`` uses each. ``weights`` compares deltas, ``connectivity``
follows the loss between runs, ``curvature`` looks at the loss around a run, ``representation`` at what models compute;
each has more than is named here. They take deltas, models and token sequences, and need neither Ray nor a study. A
study calls the same functions, so equal inputs give equal numbers.
"""

from raygeo.data.probes import Probe
from raygeo.geometry.connectivity.barriers import barrier, barrier_intervals
from raygeo.geometry.connectivity.paths import straight_path
from raygeo.geometry.curvature.draws import random_signs
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues, rayleigh
from raygeo.geometry.curvature.operators import GGN, Hessian
from raygeo.geometry.curvature.quadrature import estimate_spectrum
from raygeo.geometry.curvature.trace import hutch_plus_plus
from raygeo.geometry.representation.cka import cka, minibatches
from raygeo.geometry.representation.features import text_features
from raygeo.geometry.weights.moments import cosine, whole_moments
from raygeo.geometry.weights.separation import permutation_test
from raygeo.geometry.weights.subspaces import principal_angles
from raygeo.geometry.weights.trajectory import trajectory
from raygeo.models.delta import open_delta
from raygeo.models.loading import load_student
from raygeo.models.mix import applied

__all__ = [
    "GGN",
    "Hessian",
    "Probe",
    "applied",
    "barrier",
    "barrier_intervals",
    "cka",
    "cosine",
    "estimate_spectrum",
    "extreme_eigenvalues",
    "hutch_plus_plus",
    "load_student",
    "minibatches",
    "open_delta",
    "permutation_test",
    "principal_angles",
    "random_signs",
    "rayleigh",
    "straight_path",
    "text_features",
    "trajectory",
    "whole_moments",
]
