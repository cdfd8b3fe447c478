"""Linear algebra on the entries of a delta, in fp64. The factors of a ``LowRank`` entry are never multiplied out.

With D = s B A, inner products come from the small matrices B1'B2 and A1 A2', singular values from the r x r core
s R_B R_A' of the thin factorisations B = Q_B R_B and A' = Q_A R_A. ``Dense`` entries are read and widened block by
block, all those of a call together.
"""

import math
from collections.abc import Iterator, Sequence

import scipy.linalg
import torch
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.models.delta import Dense, Entry, LowRank, spans

_BLOCK = 1 << 22
_LAPACK_LIMIT = 512


def inner(a: Entry, b: Entry) -> float:
    """Frobenius inner product of two entries of equal shape.

    Raises:
        DeltaError: the shapes differ, or the result is not finite.
    """
    _check_shapes([a, b])
    if isinstance(a, Dense) and isinstance(b, Dense):
        parts = zip(a.blocks(_BLOCK), b.blocks(_BLOCK), strict=True)
        value = torch.stack([torch.dot(x.double().flatten(), y.double().flatten()) for x, y in parts]).sum()
    elif isinstance(a, LowRank) and isinstance(b, LowRank):
        value = a.scale * b.scale * ((a.b.double().T @ b.b.double()) * (a.a.double() @ b.a.double().T)).sum()
    else:
        value = gram([a, b])[0, 1]
    return _finite(value).item()


def gram(entries: Sequence[Entry]) -> Tensor:
    """Inner products of all pairs of entries of one shape: [N, N], fp64, symmetric.

    LoRA factors are stacked, so that all their pairs cost two matrix products; dense entries are read together, once,
    with at most 4 M values of them in memory.

    Raises:
        DeltaError: the shapes differ, or a product is not finite.
    """
    _check_shapes(entries)
    low = {i: entry for i, entry in enumerate(entries) if isinstance(entry, LowRank)}
    full = {i: entry for i, entry in enumerate(entries) if isinstance(entry, Dense)}
    out = torch.zeros(len(entries), len(entries), dtype=torch.float64)
    if low:
        out[_grid(low)] = _low_rank_gram(list(low.values()))
    if full:
        rows, columns = torch.tensor(list(low), dtype=torch.long), torch.tensor(list(full))
        own, cross = _dense_gram(list(full.values()), list(low.values()))
        out[_grid(full)] = own
        out[rows[:, None], columns], out[columns[:, None], rows] = cross, cross.T
    return _finite((out + out.T) / 2)


def side_by_side(entries: Sequence[Entry], device: torch.device | None = None) -> Iterator[Tensor]:
    """N entries of one shape, flat and fp64 on ``device``, at most 4 M values of them at once: [N, values], in order.

    Raises:
        DeltaError: the shapes differ.
    """
    _check_shapes(entries)
    elements = max(1, _BLOCK // len(entries))
    for parts in zip(*(_wide_blocks(entry, elements, device) for entry in entries), strict=True):
        yield torch.stack([part.flatten() for part in parts])


def norm(entry: Entry) -> float:
    """Frobenius norm; errors are those of ``inner``."""
    return math.sqrt(max(0.0, inner(entry, entry)))


def svd(entry: Entry, k: int | None = None, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition: U [out, n], s [n] descending, Vh [n, in], fp64, on the CPU.

    n is min(out, in), for ``LowRank`` the LoRA rank if that is less, or ``k`` if that is less still. A ``Dense`` entry
    is decomposed on ``device``, by default on the CPU.

    A ``Dense`` entry whose shorter side exceeds 512 goes through the eigenvectors of its Gram matrix. That is exact for
    slowly decaying spectra too, where a randomised range finder with two power iterations is off by tens of degrees;
    only singular values below about 1e-8 of the largest are rounding noise, as they are in the fp32 delta itself.

    Raises:
        DeltaError: the entry is not a matrix, or is not finite.
    """
    if isinstance(entry, LowRank):
        q_b, core, q_a = _core(entry)
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        return q_b @ u[:, :k], s[:k], vh[:k] @ q_a.T
    _check_matrix(entry)
    if min(entry.shape) <= _LAPACK_LIMIT:
        u, s, vh = torch.linalg.svd(_finite(entry.dense(torch.float64, device)), full_matrices=False)
        return u[:, :k].cpu(), s[:k].cpu(), vh[:k].cpu()
    size = min(entry.shape)
    values, vectors = _leading(_short_gram(entry, device), size if k is None else min(k, size))
    short = vectors.flip(1)
    long, r = torch.linalg.qr(torch.cat([block @ short for block in _tall_blocks(entry, device)]))
    long = torch.where(r.diagonal() < 0, -long, long)
    long, short, s = long.cpu(), short.cpu(), values.flip(0).clamp_min(0).sqrt().cpu()
    return (short, s, long.T) if entry.shape[0] < entry.shape[1] else (long, s, short.T)


def singular_values(entry: Entry) -> Tensor:
    """All singular values, descending, fp64: as many as ``svd`` gives, with its accuracy and its errors."""
    if isinstance(entry, LowRank):
        return torch.linalg.svdvals(_core(entry)[1])
    _check_matrix(entry)
    if min(entry.shape) <= _LAPACK_LIMIT:
        return torch.linalg.svdvals(_finite(entry.dense(torch.float64)))
    return torch.linalg.eigvalsh(_short_gram(entry)).flip(0).clamp_min(0).sqrt()


def stable_rank(s: Tensor) -> float:
    """Squared Frobenius over squared spectral norm, sum s^2 / max s^2, of singular values; NaN if all are zero."""
    return ((s / s.max()) ** 2).sum().item()


def effective_rank(s: Tensor) -> float:
    """Exponential of the entropy of s / sum s (Roy and Vetterli 2007, definition 1); NaN if all are zero."""
    return torch.special.entr(s / s.sum()).sum().exp().item()


def participation_rank(s: Tensor) -> float:
    """Participation ratio of the energies, (sum s^2)^2 / sum s^4; NaN if all are zero."""
    energy = (s / s.max()) ** 2
    return (energy.sum() ** 2 / (energy**2).sum()).item()


def block_sums(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum each block of a square matrix whose rows and columns are grouped by the same N ``sizes``: [N, N]."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rows = matrix.new_zeros(len(sizes), matrix.shape[1]).index_add_(0, owner, matrix)
    return matrix.new_zeros(len(sizes), len(sizes)).index_add_(1, owner, rows)


def _low_rank_gram(entries: Sequence[LowRank]) -> Tensor:
    b = torch.cat([entry.scale * entry.b.double() for entry in entries], dim=1)
    a = torch.cat([entry.a.double() for entry in entries])
    return block_sums((b.T @ b) * (a @ a.T), [len(entry.a) for entry in entries])


def _dense_gram(full: Sequence[Dense], low: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """Inner products of dense entries with each other, [F, F], and of low-rank with dense ones, [L, F], in one pass."""
    own = torch.zeros(len(full), len(full), dtype=torch.float64)
    block = max(1, _BLOCK // len(full))
    projected = [torch.zeros(()) for _ in full]
    for rows, parts in zip(
        spans(full[0].shape, block), zip(*(e.blocks(block) for e in full), strict=True), strict=True
    ):
        wide = [part.double() for part in parts]
        flat = torch.stack([part.flatten() for part in wide])
        own += flat @ flat.T
        if low:
            b = torch.cat([entry.scale * entry.b[rows].double() for entry in low], dim=1)
            projected = [before + b.T @ part for before, part in zip(projected, wide, strict=True)]
    if not low:
        return own, own.new_zeros(0, len(full))
    a, owner = torch.cat([entry.a.double() for entry in low]), [len(entry.a) for entry in low]
    sums = torch.stack([(product * a).sum(1) for product in projected], dim=1)
    return own, torch.stack([part.sum(0) for part in sums.split(owner)])


def _wide_blocks(entry: Entry, elements: int, device: torch.device | None) -> Iterator[Tensor]:
    """An entry in fp64 on ``device``, at most so many values of it at once, or one row."""
    if isinstance(entry, Dense):
        yield from (block.to(device, torch.float64) for block in entry.blocks(elements))
        return
    b, a = entry.b.to(device, torch.float64), entry.a.to(device, torch.float64)
    for rows in spans(entry.shape, elements):
        yield entry.scale * (b[rows] @ a)


def _core(entry: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    q_b, r_b = torch.linalg.qr(entry.b.double())
    q_a, r_a = torch.linalg.qr(entry.a.double().T)
    return q_b, _finite(entry.scale * (r_b @ r_a.T)), q_a


def _short_gram(entry: Dense, device: torch.device | None = None) -> Tensor:
    """Gram matrix over the shorter side, [n, n]: D'D of a tall matrix, D D' of a wide one."""
    size = min(entry.shape)
    out = torch.zeros(size, size, dtype=torch.float64, device=device)
    for block in _tall_blocks(entry, device):
        out += block.T @ block
    return _finite(out)


def _leading(gram: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n`` largest eigenvalues, ascending, and their vectors; LAPACK finds these alone, CUDA's solver all."""
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
        return values[-n:], vectors[:, -n:]
    found = scipy.linalg.eigh(gram.numpy(), subset_by_index=[len(gram) - n, len(gram) - 1])
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _tall_blocks(entry: Dense, device: torch.device | None = None) -> Iterator[Tensor]:
    """Blocks of rows of the matrix or of its transpose, whichever is taller."""
    if entry.shape[0] < entry.shape[1]:
        return (part.to(device, torch.float64).T for part in entry.blocks(_BLOCK, dim=1))
    return (part.to(device, torch.float64) for part in entry.blocks(_BLOCK))


def _grid(places: dict[int, Entry] | dict[int, LowRank] | dict[int, Dense]) -> tuple[Tensor, Tensor]:
    index = torch.tensor(list(places))
    return index[:, None], index


def _check_shapes(entries: Sequence[Entry]) -> None:
    shapes = sorted({entry.shape for entry in entries})
    if len(shapes) > 1:
        raise DeltaError(f"deltas of one parameter have the shapes {shapes}; they belong to different base models.")


def _check_matrix(entry: Entry) -> None:
    if len(entry.shape) != 2:
        raise DeltaError(
            f"a delta of shape {entry.shape} is not a matrix and has no singular values; use its norm alone."
        )


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise DeltaError("a delta holds NaN or infinity, its run diverged; lower its learning rate or leave it out.")
    return values
