"""Run a study once for each of several values of a setting that all its runs share, each in a store of its own:
``ray job submit --working-dir . -- python jobs/sweep.py STUDY --store STORE --over 'rollouts.heldout=[0.1, 0.2]'``.

This is for what cannot differ between the runs of one study: rollouts, student, probes. What can (losses and their
options, training settings, seeds) is written in the study itself, as lists and ranges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raygeo.cli import AddressOption, SetOption, stoppable, told
from raygeo.errors import ConfigError, WorkloadError
from raygeo.interrupts import asked
from raygeo.logs import name_lines
from raygeo.paths import without_credentials
from raygeo.store.location import extended

if TYPE_CHECKING:
    from raygeo.pipeline.config import Study

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def sweep(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    over: Annotated[str | None, typer.Option(help="A setting and its values, as a.b=[1, 2].")] = None,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    store: Annotated[str | None, typer.Option(help="Store; a dash and the value are added to it.")] = None,
    address: AddressOption = None,
) -> None:
    """Run a study for every value of --over, each in a store of its own; without --over, run it as it is.

    A study that fails does not keep the others from running. The same command resumes.
    """
    failures = {}
    with stoppable():
        studies = _studies(study, over, overrides, store)  # what is wrong in them is told before Ray is imported
        from raygeo.pipeline.context import reason
        from raygeo.pipeline.study import run_study

        for given in studies:
            try:
                run_study(given, address=address)
            except Exception as error:
                if asked():  # of a process that is to stop, none that follows could do anything
                    raise
                shown = without_credentials(given.location)
                failures[shown] = error
                typer.secho(f"{shown}: {type(error).__name__}: {reason(error)}", fg="red", err=True)
    if failures:
        raise WorkloadError(f"{len(failures)} of {len(studies)} studies failed: {', '.join(failures)}.")


def _studies(study: Path, over: str | None, overrides: list[str], store: str | None) -> list[Study]:
    """The study at every value of ``over``, all read before the first is run, so that a wrong value costs nothing."""
    from raygeo.pipeline.config import load_study
    from raygeo.pipeline.written import read_yaml

    if over is None:
        return [load_study(study, overrides, store)]
    setting, _, text = over.partition("=")
    try:
        values = read_yaml(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--over {over!r} is not of the form a.b=[1, 2].")
    studies: dict[str, Study] = {}
    for value in values:
        given = load_study(study, [*overrides, f"{setting}={json.dumps(value)}"], store)
        name = json.dumps(value).strip('"').replace("/", "_")
        location = extended(given.location, f"-{name}")
        if location in studies:
            raise ConfigError(f"--over {over!r}: two values would have the store {location}; leave one of them out.")
        studies[location] = given.model_copy(update={"store": location})
    return list(studies.values())


if __name__ == "__main__":
    name_lines()
    with told():
        app(prog_name=f"python {sys.argv[0]}")
