"""The verdict at the top of the page: sentences built from the tables, none stronger than its test.

The study's own are here: what accuracy does not measure, accuracy against the base and between runs, what this many
problems cannot tell, and what to do next to tell it. Analyses bring theirs with their parts.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import norm

from raygeo.report import typeset
from raygeo.report.view import View
from raygeo.tables import BASE

ALPHA, POWER = 0.05, 0.8
"""The level of tests, and the probability with which what is called visible is seen."""
_CUT = 0.1
"""Share of answers that were cut off from which it is said."""
_NAMED = 6
"""Most runs that a sentence names."""


@dataclass(frozen=True)
class Finding:
    """A sentence of the verdict, and the id on the page of what it rests on."""

    text: str
    rests_on: str


def not_measured(view: View) -> Iterable[Finding]:
    """Where accuracies say little, whatever their tests say: nobody or everybody is right, or answers were cut off."""
    for benchmark, rows in view.frame("accuracy").groupby("benchmark", sort=False):
        problems = typeset.counted(int(rows.problems.fillna(rows.n).max()), "problem")
        if (rows.correct == 0).all() or (rows.correct == rows.n).all():
            models = "All models, the base included," if BASE in set(rows.run) else "All runs"
            solved = "none" if (rows.correct == 0).all() else "every one"
            yield Finding(
                f"{models} solve {solved} of the {problems} of {benchmark}: its accuracy tells nothing of them.",
                "results",
            )
        cut = rows.assign(share=(rows.truncated / rows.n).fillna(0.0)).sort_values("share")
        least, most = cut.iloc[0], cut.iloc[-1]
        if most.share >= _CUT:
            whose, beside = "every model's answers", ""
            if least.share < most.share:
                whose = f"the answers of {most.run}"
                beside = (
                    f" ({typeset.percent(least.share)} of those of {least.run}): differences in accuracy may be "
                    "differences in length"
                )
            yield Finding(
                f"On {benchmark} {typeset.percent(most.share)} of {whose} were cut off at the length limit and count "
                f"as wrong{beside}. Raise max_new_tokens of evaluation.answers.",
                "limits",
            )


def against_base(view: View) -> Iterable[Finding]:
    """Which runs differ from the base in accuracy, after Holm's correction over all pairs."""
    for benchmark, problems in _benchmarks(view).items():
        tests = view.against(BASE, "mcnemar", benchmark=benchmark)
        if tests.empty:
            continue
        gains = _gains(view, benchmark)
        apart = [row.run for row in tests.itertuples() if row.p_holm < ALPHA]
        better = sorted((run for run in apart if gains[run] > 0), key=lambda run: -gains[run])
        worse = sorted((run for run in apart if gains[run] < 0), key=lambda run: gains[run])
        rest = [run for run in tests.run if run not in apart]
        said = [
            f"{word} than the base: {_listed(runs, gains)}"
            for word, runs in (("better", better), ("worse", worse))
            if runs
        ]
        if rest:
            said.append(f"not told from it: {_listed(rest, gains)}")
        pairs = typeset.counted(len(view.frame("mcnemar", benchmark=benchmark)), "pair")
        yield Finding(
            f"Accuracy on {benchmark} ({typeset.counted(problems, 'problem')}, base "
            f"{typeset.percent(_accuracies(view, benchmark)[BASE])}), Holm over {pairs}: {'; '.join(said)}.",
            "results",
        )


def between_runs(view: View) -> Iterable[Finding]:
    """Which runs differ from each other in accuracy, after Holm's correction over all pairs."""
    for benchmark in _benchmarks(view):
        tests = view.frame("mcnemar", benchmark=benchmark)
        tests = tests[(tests.run_a != BASE) & (tests.run_b != BASE)]
        if tests.empty:
            continue
        accuracies, pairs = _accuracies(view, benchmark), typeset.counted(len(tests), "pair")
        apart = tests[tests.p_holm < ALPHA]
        if apart.empty:
            yield Finding(
                f"No two runs are shown to differ in accuracy on {benchmark}, of {pairs} after correction.",
                "table-report-mcnemar",
            )
            continue
        ahead = [
            sorted((row.run_a, row.run_b), key=lambda run: -accuracies.get(run, math.nan)) for row in apart.itertuples()
        ]
        ahead.sort(key=lambda pair: -(accuracies[pair[0]] - accuracies[pair[1]]))
        shown = [
            f"{one} over {other} ({typeset.points(accuracies[one] - accuracies[other])})" for one, other in ahead[:3]
        ]
        which = "" if len(ahead) <= 3 else "the widest: "
        yield Finding(
            f"{typeset.count(len(apart))} of {pairs} of runs {'differs' if len(apart) == 1 else 'differ'} in accuracy "
            f"on {benchmark} after correction, {which}{', '.join(shown)} points.",
            "table-report-mcnemar",
        )


def visible(view: View) -> Iterable[Finding]:
    """What difference in accuracy this many problems would show, and how many it takes for the one that was found."""
    for benchmark, problems in _benchmarks(view, answered_once=True).items():
        tests = view.frame("mcnemar", benchmark=benchmark)
        if tests.empty or not problems:
            continue
        discordant = float(((tests.only_a + tests.only_b) / tests.n).median())
        level = ALPHA / len(tests)
        least = smallest_visible(discordant, problems, level)
        if least is None:
            continue
        models = "models, the base included," if BASE in {*tests.run_a, *tests.run_b} else "runs"
        yield Finding(
            f"On {benchmark} the median pair of {models} disagrees on {typeset.percent(discordant)} of the problems: "
            f"such a pair must differ by {_apart(least)} to be told apart with a probability of {100 * POWER:.0f} % "
            "after correction. No smaller difference can be called absent.",
            "table-report-mcnemar",
        )


def next_runs(view: View) -> Iterable[Finding]:
    """What to run to tell what cannot be told now."""
    single = [
        members[0]
        for members in _configurations(view).values()
        if len({(view.conditions[name].seed, view.conditions[name].init_seed) for name in members}) == 1
    ]
    if single:
        some = _names(_best_first(view, single)[:2])
        yield Finding(
            f"{'One configuration has' if len(single) == 1 else f'{len(single)} configurations have'} one seed, so a "
            f"difference between losses may be one between seeds. Next: two more seeds of {some}.",
            "limits",
        )
    for benchmark, problems in _benchmarks(view, answered_once=True).items():
        accuracies = _accuracies(view, benchmark)
        runs = sorted((run for run in view.names if run in accuracies), key=lambda run: -accuracies[run])
        if len(runs) < 2 or not problems:
            continue
        first, second = runs[:2]
        tests = view.against(first, "mcnemar", benchmark=benchmark)
        test = tests[tests.run == second]
        if test.empty or float(test.p_holm.iloc[0]) < ALPHA:
            continue
        gap = accuracies[first] - accuracies[second]
        discordant = float((test.only_a + test.only_b).iloc[0] / test.n.iloc[0])
        needed = problems_needed(discordant, gap, ALPHA) if gap > 0 else None
        if needed is None:
            continue
        tied = len(runs) > 2 and accuracies[runs[2]] == accuracies[second]
        said = (
            f"{first} and {second}, first and {'one of the second' if tied else 'second'} on {benchmark}, are "
            f"{_apart(gap)} apart and not told apart"
        )
        more = (
            f"; if that is the true difference, about {typeset.count(_rounded(needed))} problems would tell it, tested "
            f"alone ({typeset.count(problems)} here)"
        )
        yield Finding(
            f"{said}{more if needed > problems else ' after correction for all pairs'}.", "table-report-mcnemar"
        )


def smallest_visible(discordant: float, n: int, level: float, power: float = POWER) -> float | None:
    """The smallest difference of two paired proportions that McNemar's test sees; None if none would be.

    ``discordant`` is the share of the ``n`` problems that only one of two runs solves, ``level`` the two-sided level.
    Solves sqrt(n) d = z_(1-level/2) sqrt(discordant) + z_power sqrt(discordant - d^2) for d (Connor 1987,
    Biometrics 43:207).
    """
    if not 0 < discordant <= 1:
        return None
    a, b = norm.isf(level / 2) * math.sqrt(discordant), norm.ppf(power)
    # n d^2 - 2 a sqrt(n) d + a^2 = b^2 (discordant - d^2), the larger root
    p, q, r = n + b * b, -2 * a * math.sqrt(n), a * a - b * b * discordant
    found = (-q + math.sqrt(max(q * q - 4 * p * r, 0.0))) / (2 * p)
    return found if found <= discordant else None


def problems_needed(discordant: float, difference: float, level: float, power: float = POWER) -> float | None:
    """How many problems it takes to see a ``difference``; the same equation for n. None where it cannot be."""
    if not 0 < abs(difference) <= discordant <= 1:
        return None
    a = norm.isf(level / 2) * math.sqrt(discordant)
    b = norm.ppf(power) * math.sqrt(discordant - difference * difference)
    return float(((a + b) / difference) ** 2)


def _benchmarks(view: View, *, answered_once: bool = False) -> dict[str, int]:
    """Benchmarks in order, with the number of their problems; those alone that each run answered once, if asked."""
    rows = view.frame("accuracy")
    rows = rows[~(rows.samples > 1)] if answered_once else rows
    return {name: int(part.problems.fillna(part.n).max()) for name, part in rows.groupby("benchmark", sort=False)}


def _accuracies(view: View, benchmark: str) -> dict[str, float]:
    return {row["run"]: row["accuracy"] for row in view.rows("accuracy", benchmark=benchmark)}


def _gains(view: View, benchmark: str) -> dict[str, float]:
    found = _accuracies(view, benchmark)
    return {run: value - found.get(BASE, math.nan) for run, value in found.items()}


def _configurations(view: View) -> dict[object, list[str]]:
    """Names of the finished runs of each configuration, without single stages of runs."""
    found: dict[object, list[str]] = {}
    for name, condition in view.conditions.items():
        if name not in view.failed | view.legs:
            found.setdefault(condition.configuration, []).append(name)
    return found


def _best_first(view: View, runs: Sequence[str]) -> list[str]:
    first = next(iter(_benchmarks(view)), None)
    accuracies = {} if first is None else _accuracies(view, first)
    return sorted(runs, key=lambda run: -accuracies.get(run, -1.0))


def _listed(runs: Sequence[str], gains: dict[str, float]) -> str:
    """Names with their gains in points; of many, how many and the first."""
    shown = [f"{run} ({typeset.points(gains[run])})" for run in runs[:_NAMED]]
    if len(runs) > _NAMED:
        return f"{len(runs)} runs, {', '.join(shown[:3])} and others"
    return ", ".join(shown)


def _apart(gap: float) -> str:
    return f"{typeset.fixed(100 * gap, 1)} points"


def _names(runs: Sequence[str]) -> str:
    return " and ".join(runs)


def _rounded(value: float) -> int:
    """Two significant digits: it rests on estimates."""
    scale = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / scale) * scale
