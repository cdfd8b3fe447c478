"""Which matrices an analysis looks at, and rows of modules added up to layers, module types and the whole."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.parts import part_of
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Delta, layer_index, module_name
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.workload import Rows


class ModuleSettings(Settings):
    """Which modules are looked at."""

    modules: tuple[str, ...] = ()
    """Shell patterns of the modules looked at, ``*.self_attn.*``; by default every matrix of a transformer block."""

    def chooses(self, parameter: str) -> bool:
        """Whether the module of a matrix is looked at."""
        if not self.modules:
            return layer_index(parameter) is not None
        return any(fnmatchcase(module_name(parameter), pattern) for pattern in self.modules)

    def choose(self, analysis: str, parameters: Collection[str]) -> list[str]:
        """The matrices of ``parameters`` that are looked at, sorted.

        Raises:
            DeltaError: there are ``parameters``, and ``modules`` names none of them.
        """
        chosen = sorted(name for name in parameters if self.chooses(name))
        if parameters and not chosen and self.modules:
            raise DeltaError(
                f"geometry.{analysis}.modules {list(self.modules)} names none of the matrices that runs changed, "
                f"{module_name(min(parameters))} and {len(parameters) - 1} more; patterns are those of a shell."
            )
        return chosen


def held_matrices(base: Checkpoint, runs: Sequence[Run], deltas: Sequence[Delta]) -> dict[str, list[Run]]:
    """The runs that hold each matrix, by parameter, in order of its name.

    Raises:
        DeltaError: the base lacks a parameter.
    """
    holders: defaultdict[str, list[Run]] = defaultdict(list)
    for run, delta in zip(runs, deltas, strict=True):
        for name in delta:
            if len(base.shape(name)) == 2:
                holders[name].append(run)
    return dict(sorted(holders.items()))


def place(parameter: str) -> dict[str, Any]:
    """The columns that say which module a row is of."""
    return {"scope": "module", "module": module_name(parameter), "layer": layer_index(parameter)}


def added(rows: Iterable[dict[str, Any]], same: tuple[str, ...], add: Callable[[Rows], dict[str, Any]]) -> Rows:
    """Rows of scope "layer", "module type" and "global" from those of scope "module", in this order.

    Rows that agree in the columns ``same`` belong together; ``add`` makes the other columns of some of them. ``module``
    is the name of a module type (``q_proj``) and empty at the other scopes.
    """
    found = [
        dict(zip(same, key, strict=True)) | above | add(members)
        for key, of in _grouped(rows, lambda row: tuple(row[name] for name in same)).items()
        for above, members in _above(of)
    ]
    return sorted(found, key=lambda row: (_SCOPES.index(row["scope"]), row["layer"] or 0, row["module"]))


_SCOPES = ("layer", "module type", "global")


def _above(rows: Rows) -> Iterator[tuple[dict[str, Any], Rows]]:
    layers = _grouped((row for row in rows if row["layer"] is not None), lambda row: row["layer"])
    yield from (({"scope": "layer", "module": "", "layer": layer}, of) for layer, of in layers.items())
    types = _grouped(rows, lambda row: part_of(row["module"], "module type"))
    yield from (({"scope": "module type", "module": name, "layer": None}, of) for name, of in types.items())
    yield {"scope": "global", "module": "", "layer": None}, rows


def _grouped(rows: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, Rows]:
    groups: defaultdict[Any, Rows] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def ratio(above: float, below: float) -> float | None:
    """A quotient, None where it would be divided by zero."""
    return above / below if below > 0 else None
