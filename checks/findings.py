"""Every number of docs/findings.md: ``python -m checks.findings --verdict STORE --write docs/findings.md``.

The tables of the studies ``raygeo/studies/verdict.yaml`` and its controls become the blocks of that page, each between
``<!-- NAME -->`` and ``<!-- end -->``, and its pictures those of the folder ``findings`` beside it. Without ``--write``
the blocks are printed. Blocks and pictures whose study is not given stay as they are.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

import raygeo
from checks.pictures import draw
from raygeo.evaluation.statistics import holm
from raygeo.geometry.bootstrap import percentile_interval, resampled_means
from raygeo.report import typeset
from raygeo.tables import BASE

LOSSES = ("sft", "rft", "rift", "dft", "grpo", "dpo")
HELDOUT, HARDER, OTHERS, RETAINED = "heldout", "harder", "other-families", "retained"
BENCHMARKS = (HELDOUT, HARDER, OTHERS, RETAINED)
_RESAMPLES = 4000


@dataclass
class Findings:
    """The runs of one study and its tables.

    Args:
        location: its store.
        read: its tables that were read, by name.
    """

    location: str
    read: dict[str, pd.DataFrame] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """A published table."""
        if name not in self.read:
            self.read[name] = raygeo.open(self.location).table(name).to_pandas()
        return self.read[name]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Finished runs by name: loss, rate, seeds, prompts that were learned from."""
        rows = []
        for run in self.table("runs").itertuples():
            if run.status == "finished":
                params = json.loads(run.params)
                rows.append(
                    {
                        "run": run.run, "loss": run.loss, "lr": run.lr, "seed": run.seed, "init_seed": run.init_seed,
                        "prompts": params["loss"].get("prompts", "all"),
                    }
                )  # fmt: skip
        return pd.DataFrame(rows).set_index("run")

    def names(self, **equal: Any) -> list[str]:
        """Runs with these values, ordered by seed."""
        runs = self.runs
        for column, value in ({"prompts": "all", "init_seed": self.runs.init_seed.min()} | equal).items():
            if value is not None:
                runs = runs[runs[column] == value]
        return list(runs.sort_values("seed").index)

    @property
    def rates(self) -> list[float]:
        """The learning rates that every loss was trained at."""
        return sorted(self.runs[(self.runs.prompts == "all")].lr.unique())

    def right(self, runs: Sequence[str], benchmark: str) -> np.ndarray:
        """Which problems these runs solved, [problems, runs]."""
        answers = self.table("answers")
        answers = answers[(answers.benchmark == benchmark) & answers.run.isin(runs)]
        wide = answers.assign(correct=answers.correct.astype(float)).pivot(
            index="problem_id", columns="run", values="correct"
        )
        return wide[list(runs)].to_numpy()

    def accuracy(self, runs: Sequence[str], benchmark: str) -> list[float]:
        """The accuracy of each of these runs."""
        return self.right(runs, benchmark).mean(0).tolist()

    def difference(self, a: Sequence[str], b: Sequence[str], benchmark: str) -> "Difference":
        """Accuracy of ``a`` less that of ``b``, means over their runs, with an interval over problems."""
        each = self.right(a, benchmark).mean(1) - self.right(b, benchmark).mean(1)
        return Difference.of(each, self.accuracy(a, benchmark), self.accuracy(b, benchmark))

    def scaled_difference(self, a: Sequence[str], b: Sequence[str], quantity: str) -> "Difference | str":
        """The same of deltas scaled to one norm or divergence; a dash where one side has none, or both are one."""
        examples = self.table("matched_examples").query("quantity == @quantity").set_index("run").wrong
        mine, theirs = ([1 - np.asarray(examples[run]) for run in runs if run in examples.index] for runs in (a, b))
        if list(a) == list(b) or not mine or not theirs:
            return typeset.MISSING
        right, other = np.stack(mine, -1), np.stack(theirs, -1)
        return Difference.of(right.mean(1) - other.mean(1), right.mean(0).tolist(), other.mean(0).tolist())

    def pairs(self, table: str, a: Sequence[str], b: Sequence[str]) -> pd.DataFrame:
        """Rows of a table of pairs with one run of each, in either order."""
        frame = self.table(table)
        one, other = frame.run_a.isin(a) & frame.run_b.isin(b), frame.run_b.isin(a) & frame.run_a.isin(b)
        return frame[(one | other) & (frame.run_a != frame.run_b)]

    def same_order(self, frame: pd.DataFrame) -> pd.Series:
        """Which rows of a table of pairs are of runs with equal seeds."""
        seeds = self.runs.seed.to_dict() | {BASE: None}
        return frame.run_a.map(seeds) == frame.run_b.map(seeds)


@dataclass(frozen=True)
class Difference:
    """A difference in accuracy, its 95 % interval over problems, its range over seeds, a two-sided bootstrap p."""

    value: float
    low: float
    high: float
    least: float
    most: float
    p: float
    problems: int

    @classmethod
    def of(cls, each: np.ndarray, a: Sequence[float], b: Sequence[float]) -> "Difference":
        """From the difference of each problem, and the accuracies of the runs, by seed where there are as many."""
        drawn = resampled_means(each, np.ones(len(each)), resamples=_RESAMPLES, seed=0)
        low, high = percentile_interval(drawn)
        apart = [x - y for x, y in (zip(a, b, strict=True) if len(a) == len(b) else product(a, b))]
        p = 2 * min((1 + (drawn <= 0).sum()) / (1 + len(drawn)), (1 + (drawn >= 0).sum()) / (1 + len(drawn)))
        return cls(float(each.mean()), low, high, min(apart), max(apart), min(1.0, float(p)), len(each))

    def marked(self, p: float) -> str:
        """In percentage points, bold where the corrected ``p`` is below 5 %."""
        said = f"{typeset.points(self.value)} {typeset.interval(self.low, self.high, typeset.points)}"
        return f"**{said}**" if p < 0.05 else said


def spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """The mean, and the range over seeds."""
    values = [value for value in values if value is not None and np.isfinite(value)]
    if not values:
        return typeset.MISSING
    mean = write(float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} ({write(min(values))} to {write(max(values))})"


def sheet(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def rate(lr: float) -> str:
    """A learning rate as study files write it."""
    return f"{lr:.1e}".replace(".0e", "e").replace("e-0", "e-")


def two(value: float) -> str:
    """Two decimals."""
    return typeset.fixed(value, 2)


def what_was_trained(of: Findings) -> str:
    """Norm, divergence and accuracies of every loss at every rate."""
    norms = of.table("deltas").query("scope == 'global'").set_index("run").norm
    kl = of.table("divergences").query("run_a == @BASE and quantity == 'kl_ab'").set_index("run_b").value
    rows = [["base", "", "", "", *(typeset.percent(of.accuracy([BASE], each)[0]) for each in BENCHMARKS)]]
    for loss, lr in product(LOSSES, of.rates):
        runs = of.names(loss=loss, lr=lr)
        if runs:
            moved = [spread([norms[run] for run in runs], two)]
            moved.append(spread([kl[run] for run in runs], lambda value: typeset.fixed(value, 4)))
            rows.append(
                [loss, rate(lr), *moved, *(spread(of.accuracy(runs, each), typeset.percent) for each in BENCHMARKS)]
            )
    return sheet(["loss", "lr", "norm", "KL(base ‖ run)", *BENCHMARKS], rows)


def cosines(of: Findings) -> str:
    """Cosines to SFT at equal seeds, beside those of SFT's and of the loss's own seeds."""
    rows = []
    for lr in of.rates:
        reference = of.names(loss="sft", lr=lr)
        for loss in LOSSES[1:]:
            runs = of.names(loss=loss, lr=lr)
            found = of.pairs("cosine_baselines", runs, reference)
            same = of.same_order(found)
            rows.append(
                [
                    loss, rate(lr), spread(found[same].cosine, two), spread(found[~same].cosine, two),
                    *(spread(of.pairs("cosine_baselines", each, each).cosine, two) for each in (reference, runs)),
                    spread(found[same].null_sd, lambda value: typeset.fixed(value, 3)),
                ]
            )  # fmt: skip
    head = ["loss", "lr", "cosine to SFT, same order", "other order", "SFT with SFT, other order"]
    return sheet([*head, "loss with itself, other order", "s.d. by chance"], rows)


def initialisation(of: Findings) -> str:
    """What another initialisation of the adapter does to the cosine."""
    runs = of.runs[(of.runs.loss == "sft") & (of.runs.prompts == "all")]
    rows = []
    others = runs[runs.init_seed != runs.init_seed.min()]
    for lr in sorted(others.lr.unique()):
        mine = list(others[others.lr == lr].index)
        base = of.names(loss="sft", lr=lr)
        rows.append([rate(lr), spread(of.pairs("cosine_baselines", mine, base).cosine, two), str(len(mine))])
    return sheet(["lr", "cosine of SFT with SFT, other initialisation", "runs"], rows)


def angles(of: Findings) -> str:
    """Median smallest and largest principal angle to SFT over modules, on both sides, beside random subspaces."""
    rows = []
    degrees: Callable[[float], str] = lambda value: typeset.fixed(value, 0)  # noqa: E731
    for lr, loss in product(of.rates, LOSSES):
        reference = of.names(loss="sft", lr=lr)
        found = of.pairs("subspaces", of.names(loss=loss, lr=lr), reference)
        found = found[~of.same_order(found)] if loss == "sft" else found[of.same_order(found)]
        if found.empty:
            continue
        row = [_with_sft(loss), rate(lr)]
        for side in ("left", "right"):
            rows_of = found[found.side == side]
            last = rows_of.groupby(["run_a", "run_b", "module"])["index"].transform("max")
            parts = rows_of[rows_of["index"] == rows_of["index"].min()], rows_of[rows_of["index"] == last]
            medians = [(part.angle_degrees.median(), part.null_degrees.median()) for part in parts]
            row += [f"{degrees(angle)} ({degrees(null)})" for angle, null in medians]
        rows.append(row)
    return sheet(["with SFT", "lr", "left, smallest", "left, largest", "right, smallest", "right, largest"], rows)


def with_dpo(of: Findings) -> str:
    """Cosines to DPO at equal seeds and rates, and of the rates that the paper set."""
    low, high = of.rates[0], of.rates[-1]
    rows = []
    for loss in LOSSES[:-1]:
        row = [loss]
        for mine, theirs in (*((lr, lr) for lr in of.rates), (high, low)):
            found = of.pairs("cosine_baselines", of.names(loss=loss, lr=mine), of.names(loss="dpo", lr=theirs))
            row.append(spread(found[of.same_order(found)].cosine, two))
        rows.append(row)
    head = [f"both {rate(lr)}" for lr in of.rates]
    return sheet(["cosine to DPO", *head, f"{rate(high)}, DPO {rate(low)}"], rows)


def barriers(of: Findings) -> str:
    """How many pairs have a barrier over the chord, and how large, on both probes, as runs are and at equal norms."""
    rows = []
    for probe, (title, table) in product(
        ("solutions", "answer"), (("as trained", "barriers"), ("at equal norms", "matched_barriers"))
    ):
        found = of.table(table).query("probe == @probe and metric == 'nll'")
        found = found[(found.run_a != BASE) & (found.run_b != BASE)]
        preferred = found.run_a.str.startswith("dpo") | found.run_b.str.startswith("dpo")
        for what, part in (("with DPO", found[preferred]), ("of the others", found[~preferred])):
            above = int((part.chord_low > 0).sum())
            cells = (f"{above} of {len(part)}", *(typeset.fixed(x, 3) for x in (part.chord.median(), part.chord.max())))
            rows.append([probe, title, what, *cells])
    return sheet(["NLL of", "deltas", "pairs", "above 0", "median, nats", "largest, nats"], rows)


def comparisons(of: Findings) -> str:
    """Accuracy of every loss less SFT's: at equal rates, at the best rate of each, and as the paper set them.

    p are corrected by Holm over the table.
    """
    cases: list[tuple[str, str, list[str], list[str]]] = []
    for loss, lr in product(LOSSES[1:], of.rates):
        cases.append((loss, f"both {rate(lr)}", of.names(loss=loss, lr=lr), of.names(loss="sft", lr=lr)))
    low, high = of.rates[0], of.rates[-1]
    paper = f"{rate(low)}, SFT {rate(high)}"
    cases.append(("dpo", paper, of.names(loss="dpo", lr=low), of.names(loss="sft", lr=high)))
    for loss in (loss for loss in LOSSES[1:] if of.names(loss=loss)):
        mine, theirs = best_rate(of, loss), best_rate(of, "sft")
        where = f"best for each: {rate(mine)}, SFT {rate(theirs)}"
        cases.append((loss, where, of.names(loss=loss, lr=mine), of.names(loss="sft", lr=theirs)))
    return _compared(of, cases)


def best_rate(of: Findings, loss: str) -> float:
    """The rate with the lowest final NLL of held-out solutions, a choice that looks at no accuracy."""
    curves = of.table("training_curves").query("metric == 'heldout_nll'")
    last = curves.sort_values("step").groupby("run").value.last()
    return min(of.rates, key=lambda lr: np.mean([last[run] for run in of.names(loss=loss, lr=lr)]))


def mixed(of: Findings) -> str:
    """Losses on the prompts that have right and wrong rollouts, against the same losses on all, and against DPO."""
    cases = []
    runs = of.runs[of.runs.prompts == "mixed"]
    for loss in LOSSES[:-1]:
        for lr in sorted(runs.lr.unique()):
            mine, whole = of.names(loss=loss, lr=lr, prompts="mixed"), of.names(loss=loss, lr=lr)
            if mine:
                cases.append((f"{loss}, mixed prompts", f"{loss}, all prompts, {rate(lr)}", mine, whole))
                best = best_rate(of, "dpo")
                cases.append(
                    (f"dpo, {rate(best)}", f"{loss}, mixed prompts, {rate(lr)}", of.names(loss="dpo", lr=best), mine)
                )
    return _compared(of, cases, ("", "less"))


def _compared(
    of: Findings, cases: Sequence[tuple[str, str, list[str], list[str]]], head: tuple[str, str] = ("loss", "rates")
) -> str:
    rows: list[list[Any]] = []
    found: dict[Any, list[Difference]] = {}
    for what, where, mine, theirs in cases:
        if mine and theirs:
            pair = tuple(mine), tuple(theirs)
            found.setdefault(pair, [of.difference(mine, theirs, each) for each in BENCHMARKS[:3]])
            rows.append([what, where, *found[pair]])
    return _marked([*head, *(f"{each}, points" for each in BENCHMARKS[:3])], rows)


def _marked(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose differences are marked, their p corrected by Holm; one that stands in two rows is one test."""
    tests = {id(cell): cell for row in rows for cell in row if isinstance(cell, Difference)}
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    return sheet(
        columns, [[cell.marked(corrected[id(cell)]) if id(cell) in tests else cell for cell in row] for row in rows]
    )


def matched(of: Findings) -> str:
    """Accuracy of every loss with its delta scaled to the norm, and to the divergence, of the reference run; beside SFT
    so scaled, problem by problem. p are corrected by Holm over the table.
    """
    points = of.table("matched").set_index(["run", "quantity"])
    rows: list[list[Any]] = []
    for loss, lr in product(LOSSES, of.rates):
        runs = of.names(loss=loss, lr=lr)
        row: list[Any] = [loss, rate(lr)]
        for quantity in ("norm", "kl"):
            found = points.reindex([(run, quantity) for run in runs])
            row += [spread(found.scale, two), spread(found.accuracy, typeset.percent)]
            row.append(of.scaled_difference(runs, of.names(loss="sft", lr=lr), quantity))
        rows.append(row)
    head = [f"{what}, equal {where}" for where in ("norm", "KL") for what in ("scale", "accuracy", "less SFT")]
    return _marked(["loss", "lr", *head], rows)


def prescreen(of: Findings) -> str:
    """The strongest metric of each outcome, and how many survive correction with and without controls."""
    frame = of.table("prescreen")
    rows = []
    for outcome, part in frame.groupby("outcome", sort=False):
        known = part.dropna(subset=["rho"])
        if known.empty:
            continue
        alone, partial = (known[known[column] < 0.05] for column in ("p_holm", "partial_p_holm"))
        strongest = known.reindex(known.rho.abs().sort_values(ascending=False).index).head(3)
        rows += [
            [
                str(outcome), row.metric, f"{two(row.rho)} {typeset.interval(row.low, row.high)}",
                typeset.p_value(row.p_holm),
                f"{two(row.partial_rho)} {typeset.interval(row.partial_low, row.partial_high)}",
                typeset.p_value(row.partial_p_holm), f"{len(alone)}, {len(partial)} of {len(known)}",
            ]
            for row in strongest.itertuples()
        ]  # fmt: skip
    head = ["outcome", "metric", "rank correlation", "p", "norm and lr partialled out", "p"]
    return sheet([*head, "metrics with p < .05: alone, partial"], rows)


def control(of: Findings) -> str:
    """Cosines to SFT, norms and accuracies of a study with other weights or rollouts."""
    norms = of.table("deltas").query("scope == 'global'").set_index("run").norm
    rows = []
    for loss, lr in product(LOSSES, of.rates):
        runs, reference = of.names(loss=loss, lr=lr), of.names(loss="sft")
        if runs:
            found = of.pairs("cosine_baselines", runs, reference)
            found = found[~of.same_order(found)] if loss == "sft" else found[of.same_order(found)]
            accuracies = [spread(of.accuracy(runs, each), typeset.percent) for each in BENCHMARKS]
            moved = spread([norms[run] for run in runs], two)
            rows.append([_with_sft(loss), rate(lr), spread(found.cosine, two), moved, *accuracies])
    return sheet(["loss", "lr", "cosine to SFT", "norm", *BENCHMARKS], rows)


def _with_sft(loss: str) -> str:
    """What is compared with SFT: SFT itself with another order of the rows."""
    return f"{loss}, other order" if loss == "sft" else loss


def configurations(of: Findings) -> Iterator[tuple[str, float, list[str]]]:
    """Losses, rates and runs of a control, in which losses may have rates of their own."""
    for loss, lr in product(LOSSES, of.rates):
        if runs := of.names(loss=loss, lr=lr):
            yield loss, lr, runs


def directions(of: Findings) -> str:
    """How far and where every loss moved: norm, divergence, cosines to SFT, to its other seeds, and to DPO."""
    norms = of.table("deltas").query("scope == 'global'").set_index("run").norm
    kl = of.table("divergences").query("run_a == @BASE and quantity == 'kl_ab'").set_index("run_b").value
    sft, dpo = of.names(loss="sft"), of.names(loss="dpo", lr=of.rates[-1])
    rows = []
    for loss, lr, runs in configurations(of):
        to_sft, itself, to_dpo = (of.pairs("cosine_baselines", runs, each) for each in (sft, runs, dpo))
        same = of.same_order(to_sft)
        rows.append(
            [
                loss, rate(lr), spread([norms[run] for run in runs], two),
                spread([kl[run] for run in runs], lambda value: typeset.fixed(value, 4)),
                *(spread(to_sft[of_order].cosine, two) for of_order in (same, ~same)),
                spread(itself.cosine, two), spread(to_dpo[of.same_order(to_dpo)].cosine, two),
                spread(to_sft.null_sd, lambda value: typeset.fixed(value, 4)),
            ]
        )  # fmt: skip
    head = ["loss", "lr", "norm", "KL(base ‖ run)", "cosine to SFT, same order", "other order"]
    return sheet([*head, "loss with itself, other order", "cosine to DPO, same order", "s.d. by chance"], rows)


def answers(of: Findings) -> str:
    """Accuracy of every loss less SFT's after equal steps, at equal norm and at equal divergence, below the base's.

    p are corrected by Holm over the table.
    """
    sft = of.names(loss="sft")
    base = [typeset.percent(of.accuracy([BASE], each)[0]) for each in (HELDOUT, RETAINED)]
    rows: list[list[Any]] = [["base", "", base[0], *[""] * 5, base[1]]]
    for loss, lr, runs in configurations(of):
        row: list[Any] = [loss, rate(lr), spread(of.accuracy(runs, HELDOUT), typeset.percent)]
        row += [typeset.MISSING if runs == sft else of.difference(runs, sft, each) for each in BENCHMARKS[:3]]
        row += [of.scaled_difference(runs, sft, quantity) for quantity in ("norm", "kl")]
        rows.append([*row, spread(of.accuracy(runs, RETAINED), typeset.percent)])
    head = ["loss", "lr", "heldout", *(f"{each}, less SFT" for each in BENCHMARKS[:3])]
    return _marked([*head, "heldout, equal norm", "heldout, equal KL", RETAINED], rows)


BLOCKS: dict[str, tuple[str, Callable[[Findings], str]]] = {
    "trained": ("verdict", what_was_trained),
    "cosines": ("verdict", cosines),
    "initialisation": ("verdict", initialisation),
    "angles": ("verdict", angles),
    "dpo": ("verdict", with_dpo),
    "barriers": ("verdict", barriers),
    "comparisons": ("verdict", comparisons),
    "mixed": ("verdict", mixed),
    "matched": ("verdict", matched),
    "prescreen": ("verdict", prescreen),
    "negative": ("negative", control),
    "shuffled": ("shuffled", control),
    "attention": ("attention", directions),
    "attention-answers": ("attention", answers),
    "linear": ("linear", directions),
    "linear-answers": ("linear", answers),
    "linear-barriers": ("linear", barriers),
    "full": ("full", directions),
    "full-answers": ("full", answers),
    "full-barriers": ("full", barriers),
}
"""The blocks of the page: the study each is made of, and how."""


def blocks(studies: dict[str, Findings]) -> Iterator[tuple[str, str]]:
    """Every block whose study is given."""
    for name, (study, made) in BLOCKS.items():
        if study in studies:
            yield name, made(studies[study])


def written_into(page: str, name: str, text: str) -> str:
    """The page with a block of it replaced.

    Raises:
        ValueError: the page has no such block.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no block {name!r}: put <!-- {name} --> and <!-- end --> where it belongs.")
    return pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


def main() -> None:
    """Print the blocks, or write them into the page and draw its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    for study in dict.fromkeys(study for study, _ in BLOCKS.values()):
        parser.add_argument(f"--{study}", metavar="STORE", help=f"store of the study {study}")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the page whose blocks and pictures are replaced")
    given = vars(parser.parse_args())
    page = given.pop("write")
    stores = {study: store for study, store in given.items() if store}
    for name, text in blocks({study: Findings(store) for study, store in stores.items()}):
        if page is None:
            print(f"## {name}\n\n{text}\n")
        else:
            page.write_text(written_into(page.read_text(), name, text))
    if page is not None:
        draw(page.parent / page.stem, page.read_text(), stores)


if __name__ == "__main__":
    main()
