"""An operator in terms, one for each share of the probe's batches, for processes that each hold the model."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from raygeo.geometry.curvature.operators import Operator
from raygeo.geometry.probes import Probe
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run


def balanced_shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Divide indices into ``count`` shares of nearly equal total size, each in ascending order.

    The largest goes first, each to the smallest share so far: the largest share is at most 4/3 - 1/(3 count) of the
    best possible (Graham 1969, "Bounds on multiprocessing timing anomalies").
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, share) for share in range(count)]
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size, share = heapq.heappop(heap)
        shares[share].append(index)
        heapq.heappush(heap, (size + sizes[index], share))
    return [sorted(share) for share in shares]


@dataclass(frozen=True)
class OperatorShare:
    """Builds the term of ``kind`` of operator, at the weights of ``run``, that share ``index`` of ``count`` adds.

    The batches are those of the whole probe for ``batch_size``, so that a text is padded as it is in one process; they
    are divided by padded tokens. ``parameters`` is the space, all weights where it is None; ``base`` is the folder of
    the base student. Picklable; call it where the term shall live.
    """

    kind: type[Operator]
    base: AnyPath
    run: Run
    probe: AnyPath
    parameters: tuple[str, ...] | None
    batch_size: int
    keep_graphs: bool
    index: int
    count: int

    def __call__(self) -> Operator:
        """Load the student, apply the run's delta, and build the operator over the share's batches."""
        model, tokenizer = load_student(self.base, device=default_device())
        MixedWeights(model, self.run.open() or ()).set(self.run.mixture())
        probe = Probe.load(self.probe)
        batches = probe.batches(tokenizer.pad_token_id, self.batch_size)
        mine = balanced_shares([batch.input_ids.numel() for batch in batches], self.count)[self.index]
        held: list[Batch] = [batches[i] for i in mine]
        return self.kind(model, held, self.parameters, keep_graphs=self.keep_graphs, tokens=probe.tokens)


def operator_shares(
    kind: type[Operator],
    base: AnyPath,
    run: Run,
    probe: AnyPath,
    *,
    parameters: Sequence[str] | None,
    batch_size: int,
    keep_graphs: bool,
    count: int,
) -> list[OperatorShare]:
    """Recipes of the terms of one operator for ``count`` processes, fewer where the probe has fewer batches."""
    batches = len(Probe.load(probe).order(batch_size))
    count = min(count, batches)
    space = None if parameters is None else tuple(parameters)
    return [
        OperatorShare(kind, base, run, probe, space, batch_size, keep_graphs, index, count) for index in range(count)
    ]
