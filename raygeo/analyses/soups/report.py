"""What is shown of averages of runs."""

from collections.abc import Iterator, Sequence

import pandas as pd

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, nats, section
from raygeo.report.view import View

_NAMED = 12
"""Most members of an average that are named."""


@section(
    "Averages of runs",
    """Each average is of weights; runs alone and the base stand above. The greedy soup was chosen on one half of the
    held-out solutions, all likelihoods are of the other half. “Above its members” is the NLL less the mean NLL of the
    members: above zero, they do not share a basin. The last columns are about next tokens (how sure, how far from how
    often right) and about problems that all members get wrong and the average right, or the reverse.""",
)
def averages(view: View) -> Sheet:
    """Every run and every average of runs: likelihood, barrier, accuracy, calibration, flips."""
    rows: list[list[Cell]] = []
    for row in view.frame("soups").itertuples():
        alone = row.kind == "run"
        interval = typeset.interval(row.barrier_low, row.barrier_high, nats)
        rows.append(
            [
                row.soup,
                typeset.MISSING if alone else _some(row.members),
                (nats(row.nll), typeset.interval(row.nll_low, row.nll_high, nats)),
                typeset.MISSING if alone else (nats(row.barrier), interval),
                typeset.percent(row.accuracy),
                typeset.fixed(row.confidence, 3),
                typeset.fixed(row.ece, 3),
                flips(row),
            ]
        )
    columns = ["average", "members", "NLL", "above its members", "accuracy", "largest probability"]
    columns += ["calibration error", "rescued : lost"]
    return Sheet(columns, rows, frozenset({"average", "members"}))


def _some(members: Sequence[str]) -> str:
    """The members of an average; of many the first, and how many more there are."""
    rest = len(members) - _NAMED
    return ", ".join(members) if rest <= 1 else f"{', '.join(members[:_NAMED])} and {rest} more"


def flips(row: pd.Series) -> str:
    """Shares of problems that an average alone gets right, and that it alone gets wrong."""
    shares = row.false_false_true, row.true_true_false
    return typeset.MISSING if pd.isna(shares[0]) else " : ".join(typeset.percent(share) for share in shares)


_MEASURED = {"soups": ("averages", "the greedy soup"), "wise": ("lines from the base", "the best α")}


def halves(view: View) -> list[str]:
    """What averages, and lines from the base, were chosen and measured on."""
    measured = [name for name in _MEASURED if view.rows(name)]
    if not measured:
        return []
    sentences = []
    texts, problems = (pd.concat([view.frame(name)[of] for name in measured]).dropna() for of in ("n", "problems"))
    if len(texts):
        what, chosen = (" and ".join(words) for words in zip(*(_MEASURED[name] for name in measured), strict=True))
        were = "were chosen on the other half, so their likelihoods are"
        was = "was chosen on the other half, so its likelihood is"
        sentences.append(
            f"{what.capitalize()} were measured on {typeset.counted(texts.max(), 'text')}, half of the probe; "
            f"{chosen} {was if len(measured) == 1 else were} not flattered by the choice. Calibration is of next "
            "tokens of given texts, not of answers."
        )
    if len(problems):
        points = typeset.fixed(100 / problems.max(), 1)
        sentences.append(
            f"Their accuracies are over {typeset.counted(problems.max(), 'problem')}, so one problem is {points} "
            "points; no two of them are tested against each other."
        )
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """How sure each run is of the next token, and how far that is from how often it is right."""
    for row in view.rows("soups", kind="run"):
        yield row["soup"], "token_confidence", row["confidence"]
        yield row["soup"], "token_ece", row["ece"]
