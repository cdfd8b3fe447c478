"""Optuna's tree-structured Parzen estimator over several spaces: which space, then what in it (arXiv:2304.11127)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raygeo.errors import ConfigError
from raygeo.search.configurations import Configuration
from raygeo.search.settings import Mode
from raygeo.search.space import Choice, Domain, Place


@dataclass(frozen=True)
class Suggestion:
    """What to try as the ``number``-th: a configuration of the space with this index."""

    number: int
    space: int
    values: Configuration


class Optimizer:
    """Suggests configurations of ``spaces`` that do better by the objectives told so far.

    The choice of the space is itself learned, and a space's values only from results in that space. ``modes`` say for
    each objective which way is better; with several of them the front of the undominated is pushed forward.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, spaces: Sequence[Mapping[Place, Domain]], modes: Sequence[Mode], seed: int):
        optuna = import_optuna()
        self.spaces = spaces
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`: one estimator a space
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        directions = ["maximize" if mode == "max" else "minimize" for mode in modes]
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self.pruned = optuna.trial.TrialState.PRUNED

    def ask(self) -> Suggestion:
        """Suggest what to try next, knowing what has been told and what is still being tried."""
        trial = self.study.ask()
        space = 0
        if len(self.spaces) > 1:
            space = trial.suggest_categorical("space", range(len(self.spaces)))
        domains = self.spaces[space]
        values = {place: _suggest(trial, f"{space}.{'.'.join(place)}", domain) for place, domain in domains.items()}
        return Suggestion(trial.number, space, values)

    def enqueue(self, space: int, values: Configuration) -> None:
        """Suggest this configuration before any other that is not enqueued yet."""
        choices: dict[str, Any] = {"space": space} if len(self.spaces) > 1 else {}
        for place, domain in self.spaces[space].items():
            value = values[place]
            choices[f"{space}.{'.'.join(place)}"] = domain.values.index(value) if isinstance(domain, Choice) else value
        self.study.enqueue_trial(choices)

    def tell(self, number: int, objectives: Sequence[float] | None) -> None:
        """Report the objectives of the suggestion with this number; None, if it came to nothing, is worse than any."""
        if objectives is None:
            self.study.tell(number, state=self.pruned)
        else:
            self.study.tell(number, list(objectives))


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


def _suggest(trial: Any, name: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return domain.values[trial.suggest_categorical(name, range(len(domain.values)))]
    suggest = trial.suggest_int if domain.whole else trial.suggest_float
    return domain.fit(suggest(name, domain.low, domain.high, log=domain.log))
