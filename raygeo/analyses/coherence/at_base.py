"""Gradients of all losses at the base: how much those of each agree, and those of any two."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygeo.analyses.coherence.workload import (
    COHERENCE,
    FEWEST,
    GradientWorkload,
    State,
    coherence_row,
    columns,
    divisor,
)
from raygeo.geometry.representation.coherence import Array, cross_cosine, cut
from raygeo.geometry.representation.projection import projected_grams, standard_error
from raygeo.losses.base import Loss
from raygeo.models.checkpoint import Checkpoint
from raygeo.tables import schema
from raygeo.workload import Rows, Task

Part = tuple[int, int]
"""The first entry of a part of the gradients, and the one behind it."""


class CoherenceAtBase(GradientWorkload):
    """The m-coherence of every run's loss at the base, and the cosines between losses.

    Gradients of all losses are compared with each other. Exactly, a task computes all of them over one part of the
    weights, of so many entries as ``held_gradients`` allows; with ``projections``, a task computes those of one loss.
    What tasks find stands in table ``gradients``, and ``aggregate`` makes the numbers of it.
    """

    name = "coherence.base"
    tables: ClassVar = {
        "coherence": COHERENCE,
        "gradient_cosines": schema(
            """Cosine of two losses' mean gradients at the base over the same `n` prompts, each loss under its first
            run; `expected` estimates that of their expectations, from pairs of different prompts alone. `*_error` are
            the standard errors that projections add, null without them.""",
            "run_a, run_b: text; cosine, cosine_low, cosine_high, cosine_error, expected, expected_low, expected_high, "
            "expected_error: float; n: int",
        ),
        "gradients": schema(
            """What gradients at the base are compared by, a row an example (of the loss of `run`, its first, on
            `prompt`) and part of the weights from entry `start`: its inner `products` with all examples over that part;
            or its squared length and its random `projection`. Training divides the loss's sum by `count`.""",
            "run, prompt: text; start, count, parameters: int; products: doubles; square: float; projection: floats",
        ),
    }

    def tasks(self) -> list[Task]:
        """A part of the weights each; with projections, a loss each."""
        inputs, first = self.inputs(), self._first()
        if not first:
            return []
        if self.settings.projections is not None:
            return [
                Task(self.key("loss", *inputs, name, loss), 1.0, loss, f"gradients of {name} at the base")
                for loss, name in first.items()
            ]
        base = Checkpoint(self.base)
        size = sum(prod(base.shape(name)) for name in self.touched())
        parts = cut(len(first) * self.settings.examples, size, self.settings.held_gradients)
        return [
            Task(
                self.key("part", *inputs, list(first.values()), part),
                float(len(first)),
                part,
                "coherence at the base" + (f", part {number} of {len(parts)}" if len(parts) > 1 else ""),
            )
            for number, part in enumerate(parts, 1)
        ]

    def compute(self, state: State, payload: Part | Loss) -> dict[str, Rows]:
        """Inner products over a part of the weights, or projections of one loss's gradients."""
        first = self._first()
        every = [state.examples(loss) for loss in ([payload] if isinstance(payload, Loss) else self.distinct())]
        rows: Rows = [
            {"run": first[drawn.loss], "prompt": prompt, "count": divisor(drawn), "parameters": state.size}
            for drawn in every
            for prompt in drawn.prompts
        ]
        if isinstance(payload, Loss):
            found = self.projected(state, every[0], "the base")
            own: Rows = [{"start": 0, "projection": p, "square": s} for p, s in zip(*found, strict=True)]
        else:
            gram = self.gram(state, every, [payload], "the base")
            own = [{"start": payload[0], "products": products} for products in gram]
        return {"gradients": [row | each for row, each in zip(rows, own, strict=True)]}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """The coherence of every run's loss, and the cosines of every two losses."""
        table, first = tables["gradients"], self._first()
        if not len(table):
            return {}
        grams = _grams(table)
        examples = table.filter(pc.equal(table["start"], 0)).select(["run", "prompt", "count", "parameters"])
        places: dict[str, dict[str, int]] = {name: {} for name in first.values()}
        for place, row in enumerate(known := examples.to_pylist()):
            places[row["run"]][row["prompt"]] = place
        found: Rows = []
        for name, loss in self.losses.items():
            own = list(places[first[loss]].values())
            count, parameters = (known[own[0]][c] for c in ("count", "parameters")) if own else (0, 0)
            found.append(coherence_row(name, "base", count, parameters, [gram[np.ix_(own, own)] for gram in grams]))
        cosines = [
            {"run_a": a, "run_b": b} | _cosines(places[a], places[b], grams) for a, b in combinations(first.values(), 2)
        ]
        return {"coherence": found, "gradient_cosines": cosines}

    def _first(self) -> dict[Loss, str]:
        """The first run of each loss."""
        first: dict[Loss, str] = {}
        for name, loss in self.losses.items():
            first.setdefault(loss, name)
        return first


def _grams(table: pa.Table) -> list[Array]:
    """The Gram matrix of all examples; where they were projected, others from parts of the projections besides."""
    if table["projection"].null_count:
        starts = table["start"].to_numpy()
        rows = int((starts == 0).sum())
        return [_matrix(table, "products", rows * len(np.unique(starts))).reshape(-1, rows, rows).sum(0)]
    return projected_grams(_matrix(table, "projection", len(table)), table["square"].to_numpy())


def _matrix(table: pa.Table, column: str, rows: int) -> Array:
    return table[column].combine_chunks().flatten().to_numpy().astype(np.float64).reshape(rows, -1)


def _cosines(a: Mapping[str, int], b: Mapping[str, int], grams: Sequence[Array]) -> dict[str, Any]:
    """Cosines of two losses, whose examples stand at these places by prompt."""
    shared = [prompt for prompt in a if prompt in b]
    if len(shared) < FEWEST:
        return {"n": len(shared)}
    i, j = ([of[prompt] for prompt in shared] for of in (a, b))
    (cosine, expected), *without = [
        cross_cosine(gram[np.ix_(i, i)], gram[np.ix_(j, j)], gram[np.ix_(i, j)]) for gram in grams
    ]
    return (
        {"n": len(shared)}
        | columns("cosine", cosine)
        | columns("expected", expected)
        | {
            "cosine_error": standard_error([plain.value for plain, _ in without]),
            "expected_error": standard_error([apart.value for _, apart in without]),
        }
    )
