"""What a study's own numbers do not show: one sentence or two for each limit that applies."""

from collections import defaultdict

from raygeo.records import Seed
from raygeo.report import typeset
from raygeo.report.view import View


def failures(view: View) -> list[str]:
    """Runs without a result, and why; of those that a scheduler stopped, how many."""
    stopped = len(view.stopped)
    said = [
        f"{name} has no result: {record.status}, {(record.reason or 'no reason was recorded').rstrip('.')}."
        for name, record in view.records.items()
        if name in view.failed - view.stopped
    ]
    if stopped:
        runs = "run was" if stopped == 1 else "runs were"
        said.append(
            f"{typeset.count(stopped)} {runs} stopped early by the sweep's scheduler for doing worse than others at "
            "one step. They have no result, and what would have become of them is not known."
        )
    return said


def selection(view: View) -> list[str]:
    """What is chosen as the best of many is flattered."""
    trials = view.frame("trials").dropna(subset="rank")
    configurations = trials.drop_duplicates(["entry", "values"])
    if len(configurations) < 2:
        return []
    return [
        f"{typeset.count(len(configurations))} configurations were compared on the held-out data shown here. The best "
        "of many is flattered by chance: measure it again on data that played no part in the choice."
    ]


def seeds(view: View) -> list[str]:
    """Configurations that were trained with one seed only."""
    seeds: defaultdict[tuple[str, str], set[tuple[Seed, Seed]]] = defaultdict(set)
    for name, condition in view.conditions.items():
        if name not in view.failed | view.legs:
            seeds[condition.configuration].add((condition.seed, condition.init_seed))
    single, total = sum(len(found) == 1 for found in seeds.values()), len(seeds)
    if not single:
        return []
    which = "Every configuration" if single == total else f"{single} of {total} configurations"
    verb = "was" if single in (1, total) else "were"
    return [
        f"{which} (a loss with its options, and all settings but seeds) {verb} trained with one seed only, so nothing "
        "here is an interval over training runs: intervals of accuracy are over problems, and another seed may give "
        "another number."
    ]


def problems(view: View) -> list[str]:
    """How well an accuracy is known, and what was counted as wrong."""
    sentences = []
    for benchmark, rows in view.frame("accuracy").groupby("benchmark", sort=False):
        half = float((rows.high - rows.low).max() / 2)
        sentence = (
            f"{benchmark} has {typeset.counted(int(rows.problems.fillna(rows.n).max()), 'problem')}: one accuracy is "
            f"known to about ± {typeset.fixed(100 * half, 1)} points at worst."
        )
        cut = rows[rows.truncated > 0]
        if not cut.empty:
            shares = (rows.truncated / rows.n).fillna(0.0)
            worst = rows[shares == shares.max()]
            most = f"{worst.run.iloc[0]} has" if len(worst) == 1 else f"{len(worst)} models have"
            sentence += (
                f" Answers cut off at the length limit count as wrong; {most} the most, "
                f"{typeset.percent(shares.max())}."
            )
        unjudged = rows[rows.undecided > 0]
        if not unjudged.empty:
            worst = unjudged.loc[(unjudged.undecided / unjudged.n).idxmax()]
            sentence += (
                f" Answers that could not be judged count as not right; {worst.run} has the most, "
                f"{typeset.count(worst.undecided)} of {typeset.count(worst.n)}."
            )
        sentences.append(sentence)
    return sentences


def no_gold(view: View) -> list[str]:
    """That no accuracy was measured, and why."""
    if not view.frame("accuracy").empty:
        return []
    rollouts = view.tables["rollouts"].select(["prompt_id", "gold", "split"]).to_pandas()
    rollouts = rollouts[rollouts.split == "heldout"]
    if rollouts.empty:
        return []
    given = rollouts[rollouts.gold.notna()].prompt_id.nunique()
    prompts = f"{typeset.count(given)} of {typeset.count(rollouts.prompt_id.nunique())} held-out prompts have"
    return [
        f"No accuracy was measured: {prompts} a gold answer, and no benchmark was answered. What is said here of runs "
        "rests on likelihoods and weights alone."
    ]


def tests(view: View) -> list[str]:
    """What p-values are corrected for."""
    sizes = view.frame("mcnemar").groupby("benchmark", sort=False).size()
    return [
        f"p-values on {benchmark} are Holm-corrected over {typeset.counted(int(size), 'pair')}; a large one does not "
        "show two runs to be equal."
        for benchmark, size in sizes.items()
    ]
