"""The part of a delta that belongs to each attention head, its size, and deltas with and without it.

In a layer of H query heads and K key-value heads of D entries each, a query head owns D rows of q and D columns of o, a
key-value head D rows of k and v. Where H = K each key-value head serves one query head, and a head owns all four; under
grouped queries (H > K) they are counted apart, as k and v are shared by H / K query heads. So every weight of q, k, v
and o is of one head; the bias of o and the norms of q and k, which all heads share, are of none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from raygeo.errors import StudentError
from raygeo.models.delta import Dense, Entry, LowRank, Source, layer_index
from raygeo.models.tensors import Index

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Kind = Literal["head", "query", "key-value"]
_BLOCK = 1 << 22
_SIDES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
"""Along which dimension of each matrix its heads lie."""


class Head(NamedTuple):
    """One head of the attention ``module`` ("model.layers.3.self_attn"); ``kind`` says which matrices it owns."""

    module: str
    layer: int | None
    kind: Kind
    number: int


@dataclass(frozen=True)
class Layout:
    """How attention is divided: ``query`` and ``key_value`` heads of ``size`` entries each.

    ``modules`` holds, for each attention module, the names of its parameters by what they are: "q_proj.weight" and so
    on, biases of q, k and v among them.
    """

    query: int
    key_value: int
    size: int
    modules: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The layout of a model of ``config`` whose parameters have these ``shapes``.

        Raises:
            StudentError: its configuration does not say how attention is divided, or q, k, v and o are no matrices of
                their own, of the shapes that it says.
        """
        text = config.get_text_config()
        query = getattr(text, "num_attention_heads", None)
        key_value = getattr(text, "num_key_value_heads", None) or query
        width = getattr(text, "hidden_size", 0)
        size = getattr(text, "head_dim", None) or (width // query if isinstance(query, int) and query else None)
        if not all(isinstance(number, int) and number > 0 for number in (query, key_value, size)):
            raise StudentError(
                f"the configuration of this {config.model_type} model does not give one number of heads and one size "
                f"of a head for all layers; {_LEAVE_OUT}."
            )
        layout = cls(query, key_value, size, _modules(shapes))  # type: ignore[arg-type]
        if not layout.modules:
            raise StudentError(
                f"the attention of this {config.model_type} model has no q_proj, k_proj, v_proj and o_proj of its own "
                f"(it fuses or factors them), so its heads cannot be told apart; {_LEAVE_OUT}."
            )
        for names in layout.modules.values():
            for what, name in names.items():
                side, own = _SIDES[what.partition(".")[0]], layout.owners(what)
                if shapes[name][side] != own * layout.size:
                    raise StudentError(
                        f"{name} has the shape {list(shapes[name])}, and {own} heads of {layout.size}, as the "
                        f"configuration of this {config.model_type} model has it, do not divide it; {_LEAVE_OUT}."
                    )
        return layout

    @property
    def kinds(self) -> dict[Kind, tuple[str, ...]]:
        """The kinds of heads, and what each owns part of."""
        query, key_value = ("q_proj", "o_proj"), ("k_proj", "v_proj")
        if self.query == self.key_value:
            return {"head": query + key_value}
        return {"query": query, "key-value": key_value}

    def owners(self, what: str) -> int:
        """How many heads share a parameter between them, "k_proj.weight" say."""
        return self.key_value if what.startswith(("k_proj", "v_proj")) else self.query

    def heads(self, delta: Iterable[str]) -> list[Head]:
        """All heads that a delta of these parameters touches, in order."""
        touched, found = set(delta), []
        for module, names in self.modules.items():
            for kind, owned in self.kinds.items():
                if touched & {name for what, name in names.items() if what.startswith(owned)}:
                    count = self.owners(owned[0])
                    found += [Head(module, layer_index(f"{module}."), kind, number) for number in range(count)]
        return found

    def places(self, head: Head) -> dict[str, Tensor]:
        """Where the head's weights are: rows or columns by parameter, as indices [D]."""
        start = head.number * self.size
        return {name: torch.arange(start, start + self.size) for name, _ in self._owned(head)}

    def random_places(self, head: Head, generator: torch.Generator) -> dict[str, Tensor]:
        """As many rows and columns of the same matrices, drawn without regard to heads: indices [D] by parameter.

        A bias goes with the rows of its matrix.
        """
        drawn: dict[str, Tensor] = {}
        for what in self.kinds[head.kind]:
            drawn[what] = torch.randperm(self.owners(what) * self.size, generator=generator)[: self.size]
        return {name: drawn[what.partition(".")[0]] for name, what in self._owned(head)}

    def _owned(self, head: Head) -> list[tuple[str, str]]:
        names = self.modules[head.module]
        return [(name, what) for what, name in names.items() if what.startswith(self.kinds[head.kind])]


def side_of(parameter: str) -> int:
    """The dimension along which the heads of a parameter lie: 0 for q, k, v and their biases, 1 for o."""
    return _SIDES[parameter.split(".")[-2]]


def line_energies(entry: Entry, side: int) -> Tensor:
    """Squared norm of each row (``side`` 0) or column (1) of an entry, fp64, without multiplying factors out."""
    if isinstance(entry, LowRank):
        b, a = entry.scale * entry.b.double(), entry.a.double()
        return ((b @ (a @ a.T)) * b).sum(1) if side == 0 else ((b.T @ b @ a) * a).sum(0)
    if len(entry.shape) == 1:
        return entry.dense(torch.float64).square()
    parts = [block.double().square().sum(1 - side) for block in entry.blocks(_BLOCK)]
    return torch.cat(parts) if side == 0 else torch.stack(parts).sum(0)


def head_norms(
    layout: Layout, delta: Mapping[str, Entry], generator: torch.Generator | None = None
) -> dict[Head, dict[str, float]]:
    """Frobenius norms of each head's part of a delta, by matrix: "q_proj", "k_proj", "v_proj", "o_proj".

    Those of biases are in that of their matrix; matrices that the delta leaves alone are not there. With a
    ``generator`` rows and columns are dealt to heads at random, each matrix by itself: how unlike heads are by chance.
    """
    found: dict[Head, dict[str, float]] = {head: {} for head in layout.heads(delta)}
    energies: dict[str, dict[str, Tensor]] = {}
    for module, names in layout.modules.items():
        for what, name in names.items():
            if name in delta:
                lines = line_energies(delta[name], side_of(name))
                own = energies.setdefault(module, {})
                matrix = what.partition(".")[0]
                own[matrix] = own[matrix] + lines if matrix in own else lines
    for module, matrices in energies.items():
        for matrix, lines in matrices.items():
            dealt = lines if generator is None else lines[torch.randperm(len(lines), generator=generator)]
            norms = dealt.view(-1, layout.size).sum(1).sqrt().tolist()
            for head in found:
                if head.module == module and matrix in layout.kinds[head.kind]:
                    found[head][matrix] = norms[head.number]
    return found


def only(delta: Mapping[str, Entry], places: Mapping[str, Tensor]) -> dict[str, Entry]:
    """The part of a delta at some rows or columns of some parameters; the rest of these is zero."""
    return {name: _masked(delta[name], side_of(name), at, keep=True) for name, at in places.items() if name in delta}


def without(delta: Mapping[str, Entry], places: Mapping[str, Tensor]) -> dict[str, Entry]:
    """The parameters that ``places`` name, zero there and as in ``delta`` elsewhere."""
    return {name: _masked(delta[name], side_of(name), at, keep=False) for name, at in places.items() if name in delta}


def evenness(norms: Sequence[float]) -> float:
    """Participation ratio of squared norms over their number, (sum e)^2 / (n sum e^2): 1 where all are equal, 1 / n
    where one has everything; NaN if all are zero.
    """
    energies = torch.tensor(norms, dtype=torch.float64).square()
    return float(energies.sum() ** 2 / (len(norms) * energies.square().sum()))


@dataclass(frozen=True)
class _Kept:
    """A source of which all rows (``side`` 0) or columns but those where ``mask`` [n] is 1 are zero."""

    source: Source
    side: int
    mask: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    def __getitem__(self, index: Index) -> Tensor:
        value = self.source[index]
        mask = self.mask[index[self.side]] if len(index) > self.side else self.mask
        mask = mask.to(value)
        return value * (mask[:, None] if self.side == 0 and value.ndim == 2 else mask)


def _masked(entry: Entry, side: int, at: Tensor, *, keep: bool) -> Entry:
    if isinstance(entry, Dense):
        return Dense(_Kept(entry.source, side, _mask(entry.shape[side], at, keep)))
    if side == 0:
        return LowRank(entry.b * _mask(len(entry.b), at, keep)[:, None], entry.a, entry.scale)
    return LowRank(entry.b, entry.a * _mask(entry.a.shape[1], at, keep), entry.scale)


def _mask(n: int, at: Tensor, keep: bool) -> Tensor:
    mask = torch.full((n,), float(not keep))
    mask[at] = float(keep)
    return mask


def _modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, str]]:
    """Attention modules that hold q, k, v and o apart, and their parameters that belong to heads."""
    found: dict[str, dict[str, str]] = {}
    for name in shapes:
        stem, _, what = name.rpartition(".")
        module, _, matrix = stem.rpartition(".")
        if matrix in _SIDES and (what == "weight" or (what == "bias" and _SIDES[matrix] == 0)):
            found.setdefault(module, {})[f"{matrix}.{what}"] = name
    whole = {f"{matrix}.weight" for matrix in _SIDES}
    return {module: names for module, names in found.items() if whole <= set(names)}


_LEAVE_OUT = "leave geometry.heads out"
