"""Does training keep off the principal directions of the weights? Sparsity, spectra, subspaces, masks before and after.

After "The Path Not Taken" (arXiv 2511.08567), as defined again in arXiv 2606.07082, section 3.1. Unlike the other
analyses of deltas, these look at the weights before and after, not at the delta alone.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, ClassVar

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.analyses.matrices import MatrixWorkload, Opened
from raygeo.analyses.modules import ModuleSettings, added, place, ratio
from raygeo.analyses.pairs import Pairs, PairSettings, paired, pairs_key
from raygeo.geometry.weights.masks import chance_overlap, changed, masks
from raygeo.geometry.weights.principal import Principal, gap, shift_norm, turns
from raygeo.models.delta import Entry
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows


class DiagnosticSettings(ModuleSettings):
    """What is looked at."""

    k: int = Field(16, ge=1)
    """Leading singular directions of the weights, on each side."""
    alpha: float = Field(0.3, gt=0, lt=1)
    """Share of the entries in the principal and in the low-magnitude mask."""
    eta: float = Field(1e-3, ge=0, lt=2**-8)
    """Relative distance up to which two bf16 numbers count as equal; at 2^-8 two neighbours would."""
    tolerance: float = Field(1e-5, ge=0)
    """Change of a weight, as it is stored, up to which it counts as unchanged in ``absolute_sparsity``."""
    seed: int = Field(0, ge=0)
    """Seed of the order in which the entries of a delta are shuffled."""


class OffPrincipalSettings(PairSettings, DiagnosticSettings):
    """Options of the off-principal diagnostics; ``pairs`` are those of table ``changed_pairs``."""


class OffPrincipal(MatrixWorkload):
    """Off-principal diagnostics of every run; one task a matrix, so that it is decomposed once for all runs.

    With W the base's matrix and W' = W + D (LoRA products are multiplied out, one matrix at a time), all in fp64:

    * ``off_principal``: entries that change in bf16 (``masks.changed``) and ``update_sparsity``, the share that does
      not; ``absolute_sparsity``, the share of entries whose change is at most ``tolerance`` (arXiv 2505.11711), beside
      ``gaussian_sparsity``, that of normal entries of the same norm; ``spectral_shift`` |s(W') - s(W)| / |s(W)| of all
      singular values in descending order; the mean and the largest principal angle between the top-k singular subspaces
      of W and W', left and right, and ``gap``, s_k(W) - s_{k+1}(W'): the sine of the largest angle is at most
      |D|_2 / gap (Wedin 1972), so that where the gap is small a turn shows little.
    * ``mask_overlaps``: the share of changed entries in each mask of ``weights.masks`` with that of entries placed at
      random, ``baseline``, and ``z``, how many hypergeometric s.d. lie between. The principal mask holds the top alpha
      of the entries of |W's best approximation of rank k|, the low-magnitude mask the bottom alpha of |W|.
      ``shuffled_overlap`` is that of the same delta with its entries in random places, one order a matrix. bf16
      resolves small weights more finely, so that any small delta changes more of them: only what differs from this
      says where the delta is large.
    * ``changed_pairs``: entries that two runs both changed, over those that either did (Jaccard), and what that would
      be if the entries of each were placed at random.

    Rows are of scope "module"; ``totals`` adds those of layers, module types and all matrices. Memory holds one
    matrix, its singular vectors, and a byte an entry and run. A matrix [m, n], m <= n, takes about 2 (1 + runs)
    products [m, n] [n, m] and as many eigenproblems of size m.
    """

    name = "off-principal"
    decompositions = 1
    revision = 2
    tables: ClassVar = {
        "off_principal": schema(
            """The weights before and after. `scope` is "module", "layer", "module type" or "global". `changed` counts
            entries that differ in bf16, `unchanged` those that moved by no more than the tolerance, and
            `gaussian_unchanged` how many would were they normal and the norm kept; angles are those between the top-k
            singular subspaces of the weights before and after, above module scope medians over modules.""",
            "run, scope, module: text; layer, entries, changed, unchanged: int; gaussian_unchanged, update_sparsity, "
            "absolute_sparsity, gaussian_sparsity, base_norm, shift_norm, spectral_shift: float; k: int; gap, "
            "left_mean_degrees, left_max_degrees, right_mean_degrees, right_max_degrees: float",
        ),
        "mask_overlaps": schema(
            """The share of changed entries in a mask, `baseline` if they were placed at random, `z` in hypergeometric
            s.d.; `shuffled_*` are those of the same delta with its entries in random places.""",
            "run, scope, module: text; layer: int; mask: text; entries, changed, mask_entries, both: int; "
            "expected, variance: float; shuffled_changed, shuffled_both: int; overlap, baseline, "
            "shuffled_overlap, z: float",
        ),
        "changed_pairs": schema(
            """Entries changed by both of two runs, and by either; `jaccard` is their ratio, `null_jaccard` what it
            would be had each run changed as many entries at random.""",
            "run_a, run_b, scope, module: text; layer, entries, both, either: int; expected, jaccard, "
            "null_jaccard: float",
        ),
    }

    def __init__(self, settings: OffPrincipalSettings, runs: Sequence[Run], base: AnyPath, chosen: Pairs | None = None):
        super().__init__(settings, runs, base)
        self.chosen = None if settings.pairs == "all" else chosen

    @property
    def key_settings(self) -> DiagnosticSettings:
        """All but the pairs."""
        return DiagnosticSettings.of(self.settings)

    def key_parts(self, held: Sequence[Run]) -> Sequence[Any]:
        """The pairs of runs that are compared."""
        return pairs_key(self.chosen, (run.name for run in held))

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows of layers and of the whole below those of modules."""
        return totals({name: table.to_pylist() for name, table in tables.items()})

    def compute(self, state: Opened, payload: str) -> dict[str, Rows]:
        """Rows of one matrix, all runs."""
        here = place(payload)
        weight = state[0].tensor(payload)
        k = min(self.settings.k, *weight.shape)
        before = Principal.of(weight, k)
        regions = masks(weight, before, self.settings.alpha)
        order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(self.settings.seed))
        moves: dict[str, Tensor] = {}
        rows: dict[str, Rows] = {table: [] for table in self.tables}
        for run, entry in self.held(state, payload):
            move = entry.dense()
            moved = moves[run.name] = changed(weight, move, self.settings.eta)
            elsewhere = changed(weight, move.flatten()[order].view_as(move), self.settings.eta)
            count = {"run": run.name, **here, "entries": moved.numel(), "changed": int(moved.sum())}
            rows["off_principal"].append(
                count | _small(move, self.settings.tolerance) | _weights_row(weight, before, entry)
            )
            rows["mask_overlaps"] += [count | _overlap(name, mask, moved, elsewhere) for name, mask in regions.items()]
        rows["changed_pairs"] = [
            {"run_a": a, "run_b": b, **here, **_pair(moves[a], moves[b])}
            for a, b in paired(list(moves), self.chosen, str)
        ]
        return {table: [_finish(table, row) for row in found] for table, found in rows.items()}


def totals(tables: Mapping[str, Rows]) -> dict[str, Rows]:
    """Rows of scope "layer", "module type" and "global" from those of scope "module", for each of the tables.

    Counts, chance means and chance variances are added before they are divided, so that a baseline allows for how much
    of each matrix changed; norms and spectral shifts are added as root sums of squares; angles and gaps are medians
    over the matrices. ``k`` is the largest.
    """
    return {
        table: [_finish(table, row) for row in added(tables[table], names, partial(_sum, table))]
        for table, names in _KEYS.items()
    }


_KEYS = {"off_principal": ("run",), "mask_overlaps": ("run", "mask"), "changed_pairs": ("run_a", "run_b")}
_SHUFFLED = ("shuffled_changed", "shuffled_both")
_ANGLES = ("left_mean_degrees", "left_max_degrees", "right_mean_degrees", "right_max_degrees")


def _small(move: Tensor, tolerance: float) -> dict[str, Any]:
    wide = move.double()
    scale = 2**0.5 * wide.square().mean().sqrt().item()
    share = math.erf(tolerance / scale) if scale > 0 else 1.0
    return {"unchanged": int((wide.abs() <= tolerance).sum()), "gaussian_unchanged": share * move.numel()}


def _weights_row(weight: Tensor, before: Principal, entry: Entry) -> dict[str, Any]:
    after = Principal.of(weight.double() + entry.dense(torch.float64), before.k)
    row: dict[str, Any] = {"base_norm": before.values.norm().item(), "k": before.k}
    row |= {"shift_norm": shift_norm(before, after), "gap": gap(before, after)}
    for side, angles in turns(before, after).items():
        row |= {f"{side}_mean_degrees": float(angles.mean()), f"{side}_max_degrees": float(angles[-1])}
    return row


def _overlap(name: str, mask: Tensor, moved: Tensor, elsewhere: Tensor) -> dict[str, Any]:
    size = int(mask.sum())
    mean, variance = chance_overlap(moved.numel(), size, int(moved.sum()))
    row = {"mask": name, "mask_entries": size, "both": int((mask & moved).sum()), "expected": mean}
    row |= {"shuffled_changed": int(elsewhere.sum()), "shuffled_both": int((mask & elsewhere).sum())}
    return row | {"variance": variance}


def _pair(a: Tensor, b: Tensor) -> dict[str, Any]:
    mean, _ = chance_overlap(a.numel(), int(a.sum()), int(b.sum()))
    return {"entries": a.numel(), "both": int((a & b).sum()), "either": int((a | b).sum()), "expected": mean}


def _sum(table: str, rows: Rows) -> dict[str, Any]:
    """The columns of several matrices that others are worked out from (``_finish``)."""
    added = {
        "off_principal": ("entries", "changed", "unchanged", "gaussian_unchanged"),
        "mask_overlaps": ("entries", "changed", "mask_entries", "both", "expected", "variance", *_SHUFFLED),
        "changed_pairs": ("entries", "both", "either", "expected"),
    }[table]
    out: dict[str, Any] = {name: sum(row[name] for row in rows) for name in added}
    if table == "off_principal":
        out |= {name: math.hypot(*(row[name] for row in rows)) for name in ("base_norm", "shift_norm")}
        out |= {name: median(row[name] for row in rows) for name in (*_ANGLES, "gap")}
        out["k"] = max(row["k"] for row in rows)
    return out


def _finish(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """Add the columns that follow from others; null where they would be divided by zero."""
    if table == "off_principal":
        return row | {
            "update_sparsity": 1 - row["changed"] / row["entries"],
            "absolute_sparsity": row["unchanged"] / row["entries"],
            "gaussian_sparsity": row["gaussian_unchanged"] / row["entries"],
            "spectral_shift": ratio(row["shift_norm"], row["base_norm"]),
        }
    if table == "mask_overlaps":
        return row | {
            "overlap": ratio(row["both"], row["changed"]),
            "baseline": ratio(row["expected"], row["changed"]),
            "shuffled_overlap": ratio(row["shuffled_both"], row["shuffled_changed"]),
            "z": ratio(row["both"] - row["expected"], math.sqrt(row["variance"])),
        }
    chance = row["both"] + row["either"] - row["expected"]
    return row | {"jaccard": ratio(row["both"], row["either"]), "null_jaccard": ratio(row["expected"], chance)}
