"""Optuna's tree-structured Parzen estimator over several spaces: which space, then what in it (arXiv:2304.11127)."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from raygeo.errors import ConfigError
from raygeo.search.configurations import Configuration
from raygeo.search.settings import Constraint, Mode
from raygeo.search.space import Choice, Domain, Place


@dataclass(frozen=True)
class Suggestion:
    """What to try as the ``number``-th: a configuration of the space with this index."""

    number: int
    space: int
    values: Configuration


class Optimizer:
    """Suggests configurations of ``spaces`` that do better by the objectives reported so far.

    The choice of the space is itself learned, and a space's values only from results in that space. ``modes`` say for
    each objective which way is better; with several of them the front of the undominated is pushed forward. What does
    not keep the ``constraints`` counts as worse than all that does, and the more so the further it lies beyond them.

    ``past`` is what an earlier optimiser suggested, as (space, values): it is suggested first, and unchanged.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(
        self,
        spaces: Sequence[Mapping[Place, Domain]],
        modes: Sequence[Mode],
        seed: int,
        past: Sequence[tuple[int, Configuration]] = (),
        constraints: Sequence[Constraint] = (),
    ):
        optuna = import_optuna()
        self.spaces, self.modes, self.constraints = spaces, modes, constraints
        self._excess: dict[int, list[float]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`: one estimator a space
            warnings.simplefilter("ignore", FutureWarning)  # `constraints_func`, which every Optuna that we take has
            sampler = optuna.samplers.TPESampler(
                seed=Random(f"{seed}:{len(past)}").getrandbits(32),  # resuming must not repeat the first draws
                multivariate=True,
                group=True,
                constant_liar=True,
                constraints_func=(lambda trial: self._excess[trial.number]) if constraints else None,
            )
        directions = ["maximize" if mode == "max" else "minimize" for mode in modes]
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self.pruned = optuna.trial.TrialState.PRUNED
        for space, values in past:
            chosen = {
                _parameter(space, place): _index(domain, values[place]) for place, domain in spaces[space].items()
            }
            self.study.enqueue_trial({"space": space} | chosen)

    def ask(self) -> Suggestion:
        """Suggest what to try next, knowing what has been reported and what is still being tried."""
        trial = self.study.ask()
        space = trial.suggest_categorical("space", range(len(self.spaces)))
        domains = self.spaces[space]
        values = {place: _suggest(trial, _parameter(space, place), domain) for place, domain in domains.items()}
        return Suggestion(trial.number, space, values)

    def tell(self, number: int, results: Sequence[float] | None) -> None:
        """Report the results of the suggestion with this number: of the objectives, then of the constraints.

        None, if it came to nothing, is worse than any.
        """
        if results is None:
            self._excess[number] = [math.inf] * len(self.constraints)
            self.study.tell(number, state=self.pruned)
        else:
            bounded = zip(self.constraints, results[len(self.modes) :], strict=True)
            self._excess[number] = [constraint.excess(value) for constraint, value in bounded]
            self.study.tell(number, list(results[: len(self.modes)]))


def _parameter(space: int, place: Place) -> str:
    return f"{space}.{'.'.join(place)}"


def import_optuna() -> Any:
    """Import Optuna, quiet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("sweep.search 'optuna' needs Optuna; install it: pip install 'raygeo[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _index(domain: Domain, value: Any) -> Any:
    return domain.values.index(value) if isinstance(domain, Choice) else value


def _suggest(trial: Any, name: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return domain.values[trial.suggest_categorical(name, range(len(domain.values)))]
    suggest = trial.suggest_int if domain.whole else trial.suggest_float
    return domain.fit(suggest(name, domain.low, domain.high, log=domain.log))
