"""``python -m checks.faults`` breaks real studies on this machine and prints what became of them.

Every fault strikes a small study in every stage. What the study leaves must be what it leaves if nobody disturbs it, to
the last bit: either by itself or, where the fault ended it, after the same command; nothing finished is done again;
MLflow has one run for each, none RUNNING, with every step once. The whole takes about an hour on two cores;
``--stage`` and ``--fault`` choose, ``--training`` is another table, of faults inside training.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import TimeoutExpired

import ray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from checks.faults.places import FAULTS, Fault
from checks.faults.study import STRUCK, Left, Prepared, begun, stamps, untracked
from checks.faults.training import break_training, table_of


@dataclass(frozen=True)
class Outcome:
    """One case.

    ``exit`` is the first command's; ``kept`` of ``units`` that were finished when it struck were not made again;
    ``wrong`` is what is not as it should be.
    """

    fault: str
    stage: str
    exit: int | None
    kept: int
    units: int
    seconds: float
    wrong: list[str]


def strike(fault: Fault, stage: str, prepared: Prepared, expected: Left, log: Path) -> Outcome:
    """Run the study up to the end of a stage, let the fault happen in it, and give the same command again."""
    prepared.reset(stage)
    arguments = [str(prepared.file), "--until", stage]
    wrong, started, code = [], time.monotonic(), None
    before = stamps(prepared.store)
    with log.open("w") as out:
        driver = fault.start(arguments, out)
        try:
            begun(stage, driver, log, prepared.store, before)
            finished = stamps(prepared.store)
            fault.strike(driver, stage)
            code = driver.wait(600)
        finally:
            driver.kill()
    if fault.alone and code:
        wrong.append(f"it ended with {code}")
    fault.heal()
    with log.open("a") as out:
        repeated = fault.start(arguments, out)
        try:
            again = repeated.wait(600)
        finally:
            repeated.kill()
    if again:
        wrong.append(f"the same command ended with {again}")
    now = stamps(prepared.store)
    kept = sum(now.get(path) == stamp for path, stamp in finished.items())
    if kept < len(finished):
        wrong.append(f"{len(finished) - kept} of {len(finished)} finished units were made again")
    wrong += expected.unlike(Left.of(prepared.store))
    wrong += untracked(fault.uri, prepared.store)
    said = log.read_text()
    if "Traceback (most recent call last)" in said:
        wrong.append("a traceback on the console")
    return Outcome(fault.what, stage, code, kept, len(finished), time.monotonic() - started, wrong)


def main() -> None:
    """Print the table, ``--out FILE`` as JSON too."""
    parser = argparse.ArgumentParser(
        prog="python -m checks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--fault", nargs="+", choices=names, default=names, help="only these")
    parser.add_argument("--stage", nargs="+", choices=STRUCK, default=list(STRUCK), help="only in these stages")
    parser.add_argument("--training", action="store_true", help="faults inside training instead, with their steps")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--keep", type=Path, help="a folder for stores and logs, which stay there for further calls")
    arguments = parser.parse_args()
    console = Console()
    if arguments.training:
        results = break_training()
        write(arguments.out, [asdict(result) for result in results])
        console.print(table_of(results))
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        prepared = Prepared(arguments.keep or Path(temporary))
        prepared.make(lambda said: console.print(said, highlight=False))
        ray.shutdown()
        expected = {stage: prepared.expected(stage) for stage in arguments.stage}
        outcomes: list[Outcome] = []
        for kind in FAULTS:
            if kind.name not in arguments.fault:
                continue
            fault = kind(prepared.store)
            if (reason := fault.why_not()) is not None:
                console.print(f"{kind.name}: not tried, for {escape(reason)}", highlight=False)
                continue
            for stage in (stage for stage in kind.stages if stage in arguments.stage):
                log = prepared.folder / f"{kind.name}-{stage}.log"
                try:
                    with fault.place():
                        outcome = strike(fault, stage, prepared, expected[stage], log)
                except (RuntimeError, TimeoutError, TimeoutExpired) as error:
                    outcome = Outcome(kind.what, stage, None, 0, 0, 0.0, [str(error)])
                outcomes.append(outcome)
                console.print(
                    f"{kind.name} in {stage}: {'; '.join(outcome.wrong) or 'as undisturbed'}", highlight=False
                )
                write(arguments.out, [asdict(outcome) for outcome in outcomes])
    table = Table("fault", "stage", "exit", "units kept", "seconds", "in the end", title="Faults in every stage")
    for o in outcomes:
        shown = ["" if o.exit is None else str(o.exit), f"{o.kept} of {o.units}", f"{o.seconds:.0f}"]
        table.add_row(o.fault, o.stage, *shown, escape("\n".join(o.wrong)) or "as undisturbed")
    console.print(table)
    raise SystemExit(any(outcome.wrong for outcome in outcomes))


def write(file: Path | None, rows: list[dict]) -> None:
    """Write a table as JSON, if it is asked for."""
    if file is not None:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
