"""Averages of the weights of several runs: the uniform and the greedy soup of Wortsman et al., arXiv:2203.05482."""

from collections.abc import Callable, Sequence

from raygeo.models.mix import Mixture
from raygeo.models.run import Run


def average(runs: Sequence[Run]) -> Mixture:
    """The mean of the weights of ``runs`` as a mixture, exact for LoRA runs too; the base may be among them."""
    return [term for run in runs for term in run.mixture(1 / len(runs))]


def greedy(runs: Sequence[Run], nll: Callable[[Mixture], float]) -> list[Run]:
    """Members of the greedy soup of ``runs`` (recipe 1 there), in the order they were taken.

    Runs are taken by their ``nll``, the best first, and each that does not raise the NLL of the average so far is kept.
    """
    alone = sorted((nll(run.mixture()), i) for i, run in enumerate(runs))
    best, first = alone[0]
    members = [runs[first]]
    for _, i in alone[1:]:
        tried = nll(average([*members, runs[i]]))
        if tried <= best:
            best, members = tried, [*members, runs[i]]
    return members
