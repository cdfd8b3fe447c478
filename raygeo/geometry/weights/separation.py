"""Are runs of one loss more alike than runs of different losses? Means of cosines, and a permutation test over losses.

Compared are runs of equal settings and *other* seeds, within a loss and between losses, so that a data order or an
adapter initialisation in common cannot pass for likeness of losses. Were the loss of no effect, all runs with the same
settings and seeds would be one and the same run; hence the losses of such runs are exchangeable, and labels are
permuted among them alone: two runs of one data order are alike for that reason, and no others can stand in for them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, permutations, product

import numpy as np

from raygeo.records import Condition, Seed

LEVEL = 0.05
"""A test that cannot give a p-value below this is not made."""

_TIE = 1e-12
_CHUNK = 1024


@dataclass(frozen=True)
class Separation:
    """Cosines within losses and between them, and whether their difference could be chance.

    ``runs`` and ``losses`` count what takes part. ``d_prime`` is (within mean - between mean) / pooled s.d., None with
    fewer than two pairs on either side, whose spread is then not known, or equal cosines. ``p`` is one-sided: the share
    of labelings whose difference of means is at least the observed one. ``labelings`` counts those that group the runs
    differently, of which ``p`` is a share at least 1 / ``labelings``. ``draws`` is None where all were enumerated; else
    so many were drawn at random, and p is (1 + hits) / (1 + draws) (Phipson and Smyth 2010). Where there is no ``p``,
    ``reason`` says why.
    """

    runs: int
    losses: int
    within_n: int
    within_mean: float | None
    between_n: int
    between_mean: float | None
    d_prime: float | None
    labelings: int
    draws: int | None
    p: float | None
    reason: str


def permutation_test(
    cosines: np.ndarray,
    losses: Sequence[str],
    seeds: Sequence[int],
    settings: Sequence[str] | None = None,
    *,
    draws: int = 9999,
    seed: int = 0,
) -> Separation:
    """Whether runs of one loss are more alike than runs of different losses, from plain lists; see ``separation``.

    ``cosines`` is [N, N]; ``losses``, ``seeds`` (of the data order) and ``settings`` (everything else, as any text; the
    same for all by default) say how each of the N runs was trained.

    Raises:
        ValueError: these are not of one length N.
    """
    alike = [""] * len(losses) if settings is None else settings
    conditions = [Condition(*how, None) for how in zip(losses, alike, seeds, strict=True)]
    if cosines.shape != (len(conditions), len(conditions)):
        raise ValueError(
            f"{len(conditions)} runs have [{len(conditions)}, {len(conditions)}] cosines, not those of "
            f"shape {list(cosines.shape)}."
        )
    return separation(cosines, conditions, draws, seed)


def separation(cosines: np.ndarray, conditions: Sequence[Condition], draws: int, seed: int) -> Separation:
    """Compare cosines [N, N] within losses with those between losses, over settings that have both.

    Labelings are enumerated if there are at most ``draws`` permutations, else ``draws`` are drawn with ``seed``. A run
    of the same condition as one before it, or whose cosines are not all known, is left out.
    """
    known = [i for i in range(len(conditions)) if np.isfinite(np.delete(cosines[i], i)).any()]
    first = {conditions[i]: i for i in reversed(known)}
    chosen = _comparable([conditions[i] for i in sorted(first.values())])
    taken = [first[condition] for condition in chosen]
    pairs = np.array(list(_pairs(chosen)), dtype=int).reshape(-1, 2)
    values = cosines[np.ix_(taken, taken)][pairs[:, 0], pairs[:, 1]]
    losses = np.unique([c.loss for c in chosen], return_inverse=True)[1].reshape(-1)
    same = losses[pairs[:, 0]] == losses[pairs[:, 1]]
    strata = list(_strata(chosen).values())
    labelings = _labelings(strata, losses)
    found = Separation(
        runs=len(chosen),
        losses=len(set(losses.tolist())),
        within_n=int(same.sum()),
        within_mean=float(values[same].mean()) if same.any() else None,
        between_n=int((~same).sum()),
        between_mean=float(values[~same].mean()) if (~same).any() else None,
        d_prime=_d_prime(values[same], values[~same]),
        labelings=labelings,
        draws=None,
        p=None,
        reason=_reason(labelings, bool(len(chosen))),
    )
    if found.reason:
        return found
    total = math.prod(math.factorial(len(stratum)) for stratum in strata)
    drawn = None if total <= draws else draws
    permuted = _all(strata, losses) if drawn is None else _random(strata, losses, draws, np.random.default_rng(seed))
    observed, hits, count = _difference(losses[None], pairs, values)[0], 0, 0
    while len(block := np.array(list(islice(permuted, _CHUNK)))):
        hits += int((_difference(block, pairs, values) >= observed - _TIE).sum())
        count += len(block)
    p = hits / count if drawn is None else (1 + hits) / (1 + count)
    return Separation(**vars(found) | {"draws": drawn, "p": p})


def _comparable(conditions: list[Condition]) -> list[Condition]:
    """The runs of those settings that have pairs of other seeds both within a loss and between losses."""
    groups: defaultdict[str, list[Condition]] = defaultdict(list)
    for condition in conditions:
        groups[condition.settings].append(condition)
    kept = set()
    for settings, group in groups.items():
        kinds = {a.loss == b.loss for a, b in combinations(group, 2) if a.seeds(b) != "same"}
        if len(kinds) == 2:
            kept.add(settings)
    return [condition for condition in conditions if condition.settings in kept]


def _pairs(conditions: list[Condition]) -> Iterator[tuple[int, int]]:
    for (i, a), (j, b) in combinations(enumerate(conditions), 2):
        if a.settings == b.settings and a.seeds(b) != "same":
            yield i, j


def _strata(conditions: list[Condition]) -> dict[tuple[str, Seed, Seed], list[int]]:
    """Indices of the runs whose losses are exchangeable; no loss stands twice in one stratum."""
    strata: defaultdict[tuple[str, Seed, Seed], list[int]] = defaultdict(list)
    for i, condition in enumerate(conditions):
        strata[condition.surroundings].append(i)
    return strata


def _labelings(strata: list[list[int]], losses: np.ndarray) -> int:
    """Number of ways to group the runs by permuting losses within strata.

    Permutations that rename losses throughout give the same groups. Losses can be renamed into each other where they
    stand in the same strata, and every grouping comes from equally many permutations.
    """
    places: defaultdict[int, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        for i in stratum:
            places[int(losses[i])].append(index)
    alike = Counter(tuple(place) for place in places.values())
    total = math.prod(math.factorial(len(stratum)) for stratum in strata)
    return total // math.prod(math.factorial(n) for n in alike.values())


def _reason(labelings: int, any_runs: bool) -> str:
    if not any_runs:
        return "no loss has runs of two seeds beside a run of another loss with the same settings"
    if labelings * LEVEL <= 1:
        return f"{labelings} different labelings cannot give a p-value below {LEVEL:g}; train more seeds or losses"
    return ""


def _d_prime(within: np.ndarray, between: np.ndarray) -> float | None:
    if min(len(within), len(between)) < 2:
        return None
    freedom = len(within) + len(between) - 2
    pooled = math.sqrt((len(within) * within.var() + len(between) * between.var()) / freedom)
    return float((within.mean() - between.mean()) / pooled) if pooled > _TIE else None


def _difference(labels: np.ndarray, pairs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Within mean less between mean for each row of ``labels`` [M, n]: [M]."""
    same = labels[:, pairs[:, 0]] == labels[:, pairs[:, 1]]
    within, inside = same @ values, same.sum(1)
    return within / inside - (values.sum() - within) / (len(values) - inside)


def _all(strata: list[list[int]], losses: np.ndarray) -> Iterator[np.ndarray]:
    for order in product(*(permutations(stratum) for stratum in strata)):
        labels = losses.copy()
        labels[list(chain(*strata))] = losses[list(chain(*order))]
        yield labels


def _random(strata: list[list[int]], losses: np.ndarray, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for _ in range(draws):
        labels = losses.copy()
        for stratum in strata:
            labels[stratum] = rng.permutation(losses[stratum])
        yield labels
