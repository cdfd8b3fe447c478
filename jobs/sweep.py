"""Run a study once for each of several values of a setting that all its runs share, each in a store of its own:
``python jobs/sweep.py STUDY.yaml --over 'rollouts.negative_share=[0.05, 0.25, 0.5]'`` (or under ``ray job submit``).

This is for what cannot differ between the runs of one study: rollouts, student, probes. What can (losses and their
options, training settings, seeds) is written in the study itself, as lists and ranges. Takes ``--set`` and ``--store``
as ``raygeo run`` does; without ``--over`` it runs the study as it is.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raygeo.cli import stoppable
from raygeo.errors import ConfigError, RaygeoError
from raygeo.pipeline.config import Study, load_study, read_yaml
from raygeo.pipeline.study import run_study
from raygeo.store.location import extended


def sweep(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    over: Annotated[str | None, typer.Option(help="A setting and its values, as a.b=[1, 2].")] = None,
    overrides: Annotated[list[str], typer.Option("--set", help="Override a setting, as a.b=c.")] = [],  # noqa: B006
    store: Annotated[str | None, typer.Option(help="Store; a dash and the value are added to it.")] = None,
) -> None:
    """Run the study for every value of --over."""
    with stoppable():
        for given in _studies(study, over, overrides, store):
            run_study(given)


def _studies(study: Path, over: str | None, overrides: list[str], store: str | None) -> list[Study]:
    """The study at every value of ``over``, all read before the first is run, so that a wrong value costs nothing."""
    if over is None:
        return [load_study(study, overrides, store)]
    setting, _, text = over.partition("=")
    try:
        values = read_yaml(text)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--over {over!r} is not of the form a.b=[1, 2].")
    studies = []
    for value in values:
        given = load_study(study, [*overrides, f"{setting}={json.dumps(value)}"], store)
        location, name = given.store or f"store/{given.name}", json.dumps(value).strip('"').replace("/", "_")
        studies.append(given.model_copy(update={"store": extended(location, f"-{name}")}))
    return studies


if __name__ == "__main__":
    try:
        typer.run(sweep)
    except RaygeoError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise SystemExit(2) from None
