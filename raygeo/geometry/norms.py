"""How far each run moved each weight matrix, and in how many directions: one row a module, a layer and a run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from raygeo.errors import DeltaError, StudentError
from raygeo.geometry import linalg
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.delta import Dense, Entry, layer_index, module_name
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

_TIED = {"lm_head.weight": "model.embed_tokens.weight", "model.embed_tokens.weight": "lm_head.weight"}
_DTYPES = {"F64", "F32", "F16", "BF16"}
_RANKS = {
    "stable_rank": linalg.stable_rank,
    "effective_rank": linalg.effective_rank,
    "participation_rank": linalg.participation_rank,
}


class BaseWeights:
    """Shapes and norms of a base model's parameters, read from its safetensors one parameter at a time.

    Of two tied parameters a checkpoint holds one; either name finds it.
    """

    def __init__(self, folder: AnyPath):
        """Read which file holds which parameter.

        Raises:
            StudentError: the folder holds neither ``model.safetensors`` nor its index.
        """
        self.folder = Path(folder)
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if single.is_file():
            with safe_open(single, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), single)
        elif index.is_file():
            weight_map = json.loads(index.read_text())["weight_map"]
            self._files = {name: self.folder / file for name, file in weight_map.items()}
        else:
            raise StudentError(f"{folder} holds no {single.name} nor {index.name}; save the base as safetensors there.")
        self._norms: dict[str, float] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter; the tensor itself is not read."""
        key = self._key(name)
        with safe_open(self._files[key], framework="pt") as file:
            return tuple(file.get_slice(key).get_shape())

    def norm(self, name: str) -> float:
        """Frobenius norm of a parameter, summed in fp64 and remembered.

        Raises:
            StudentError: the parameter is stored quantised.
        """
        if name not in self._norms:
            key = self._key(name)
            with safe_open(self._files[key], framework="pt") as file:
                dtype = file.get_slice(key).get_dtype()
                if dtype not in _DTYPES:
                    raise StudentError(f"{self.folder}: {key} is stored as {dtype}; give an unquantised base model.")
                self._norms[name] = linalg.norm(Dense(file.get_tensor(key)))
        return self._norms[name]

    def check(self, name: str, entry: Entry) -> None:
        """Refuse a delta entry that does not fit the base.

        Raises:
            DeltaError: the base lacks the parameter, or has it in another shape.
        """
        shape = self.shape(name)
        if shape != entry.shape:
            raise DeltaError(
                f"the delta of {name} has shape {entry.shape} where {self.folder} has {shape}; "
                "it was trained from another model."
            )

    def _key(self, name: str) -> str:
        for key in (name, _TIED.get(name, name)):
            if key in self._files:
                return key
        raise DeltaError(f"the delta names {name!r}, which {self.folder} lacks; it was trained from another model.")


class NormSettings(Settings):
    """Norms and ranks have no options."""


class Norms(Workload):
    """Norms and ranks of every delta; one task a run, rows for table ``deltas``.

    * Scope "module", one row a parameter: Frobenius ``norm``, ``base_norm``, their ratio, ``spectral_norm`` (largest
      singular value) and the ranks of ``raygeo.geometry.linalg``. The spectral norm is null for what is no matrix, the
      ranks also for a matrix that did not move.
    * Scopes "layer" and "global": the parameters as blocks of one block-diagonal matrix, so that norms are root sums of
      squares and the spectral norm is the largest. Base norms are over the parameters the delta holds. Ranks are null
      at scope "layer"; at scope "global" they are the unweighted mean over the matrices that moved.

    A relative norm is null where the base is zero.
    """

    name = "norms"
    tables = ("deltas",)

    def __init__(self, settings: NormSettings, runs: Sequence[Run], base: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base

    def tasks(self) -> list[Task]:
        """One task a run that has a delta; all cost the same."""
        return [
            Task(content_key(self.name, self.settings, [run.name, run.key]), 1.0, run, f"norms of {run.name}")
            for run in self.runs
        ]

    def setup(self) -> BaseWeights:
        """Open the base checkpoint; it remembers norms from task to task."""
        return BaseWeights(self.base)

    def compute(self, state: BaseWeights, payload: Run) -> dict[str, Rows]:
        """Rows of one run."""
        modules = []
        for name, entry in (payload.open() or {}).items():
            state.check(name, entry)
            modules.append(_module_row(name, entry, state.norm(name)))
        layers = sorted({row["layer"] for row in modules} - {None})
        rows = modules + [_total([row for row in modules if row["layer"] == i], "layer", i) for i in layers]
        rows.append(_total(modules, "global", None) | _mean_ranks(modules))
        return {"deltas": [{"run": payload.name, **row} for row in rows]}


def _module_row(name: str, entry: Entry, base_norm: float) -> dict[str, Any]:
    row = _norms("module", module_name(name), layer_index(name), linalg.norm(entry), base_norm)
    if len(entry.shape) == 2:
        s = linalg.singular_values(entry)
        row["spectral_norm"] = s[0].item()
        if s[0] > 0:
            row |= {column: rank(s) for column, rank in _RANKS.items()}
    return row


def _total(modules: Rows, scope: str, layer: int | None) -> dict[str, Any]:
    size = math.hypot(*(row["norm"] for row in modules))
    row = _norms(scope, "", layer, size, math.hypot(*(row["base_norm"] for row in modules)))
    row["spectral_norm"] = max((row["spectral_norm"] for row in modules if "spectral_norm" in row), default=None)
    return row


def _norms(scope: str, module: str, layer: int | None, size: float, base: float) -> dict[str, Any]:
    ratio = size / base if base > 0 else None
    return {"scope": scope, "module": module, "layer": layer, "norm": size, "base_norm": base, "relative_norm": ratio}


def _mean_ranks(modules: Rows) -> dict[str, float]:
    moved = [row for row in modules if "stable_rank" in row]
    return {column: math.fsum(row[column] for row in moved) / len(moved) for column in _RANKS if moved}
