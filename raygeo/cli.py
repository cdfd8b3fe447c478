"""The command line: ``raygeo run | compare | losses | report | ui | doctor``."""

import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What each offline reasoning loss does to the weights of a student.",
)

StoreOption = Annotated[str | None, typer.Option("--store", help="Path or URI of the store; overrides the study's.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Override a setting, as a.b=c; may be repeated.")]
AddressOption = Annotated[str | None, typer.Option(help="A running Ray cluster; by default RAY_ADDRESS, else none.")]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study file.")],
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    store: StoreOption = None,
    address: AddressOption = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
) -> None:
    """Run a study: whatever its store lacks is made, in order; the rest is taken from the store."""
    from raygeo.config import load_study
    from raygeo.study import run_study

    run_study(load_study(study, overrides, store), address=address, until=until)


@app.command()
def compare(
    base: Annotated[str, typer.Argument(help="The model they were trained from: a folder or a hub id.")],
    models: Annotated[
        list[str],
        typer.Argument(help="Fine-tuned models or PEFT LoRA adapters: folders or hub ids.", show_default=False),
    ],
    names: Annotated[
        list[str], typer.Option("--name", help="Name of a model, once for each; by default its folder's.")
    ] = [],  # noqa: B006 (typer copies it)
    solutions: Annotated[
        str | None,
        typer.Option(help="JSON lines with prompt and completion: compare losses, states and curvature on these."),
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Name of the model to compare others with.")] = None,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    store: Annotated[str | None, typer.Option(help="Path or URI of the store; by default store/comparison.")] = None,
    address: AddressOption = None,
) -> None:
    """Compare the weights of models that were fine-tuned from one base, without a study; writes the same page."""
    from raygeo.compare import compare_models, plan_comparison

    comparison = plan_comparison(
        base, models, names=names, store=store, solutions=solutions, reference=reference, overrides=overrides
    )
    compare_models(comparison, address=address)


@app.command()
def losses(
    name: Annotated[str | None, typer.Argument(metavar="[TYPE]", help="Say all about this one.")] = None,
) -> None:
    """List the losses a study can name; with a type, print its formula, needs and options in full."""
    from rich import box
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from raygeo.errors import ConfigError
    from raygeo.losses.catalogue import catalogue

    entries, console = catalogue(), Console()
    if name is None:
        table = Table("type", "minimised", "needs besides graded rollouts", box=box.SIMPLE_HEAD, pad_edge=False)
        for entry in entries.values():
            table.add_row(Text(entry.type, "bold"), Text(entry.formula), Text("; ".join(entry.needs)))
        console.print(table)
        console.print("raygeo losses TYPE prints one in full, with its options.")
        return
    if name not in entries:
        near = get_close_matches(name, entries, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the types are {', '.join(entries)}."
        raise ConfigError(f"{name!r}: no such loss; {hint}")
    entry = entries[name]
    console.print(Text.assemble((entry.title, "bold"), f" (type: {entry.type})\n{entry.formula}\n{entry.paper}\n"))
    console.print(Markdown(entry.description))
    console.print(
        Text(f"\naveraged over: {entry.unit}s\nneeds: {'; '.join(entry.needs) or 'nothing but graded rollouts'}\n")
    )
    table = Table("option", "values", "default", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for option in entry.options:
        table.add_row(option.name, Text(option.values), Text(option.default), Markdown(option.description))
    console.print(table)


@app.command()
def report(store: Annotated[str, typer.Argument(help="Path or URI of a store.")]) -> None:
    """Write report.html anew from the tables of a store."""
    from raygeo.stages.report import rewrite_report
    from raygeo.store import Store

    typer.echo(rewrite_report(Store(store, create=False)))


@app.command()
def ui(
    store: Annotated[str, typer.Argument(help="Path of a store.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow over a store's runs on 127.0.0.1 (Ctrl-C ends it)."""
    from raygeo.store import Store
    from raygeo.tracking import tracking_uri

    uri = tracking_uri(Store(store, create=False))
    if uri.startswith("http"):
        typer.echo(f"The runs are on the MLflow server at {uri}; open it in a browser.")
        return
    typer.echo(f"MLflow over {uri}: http://127.0.0.1:{port}")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"])


@app.command()
def doctor(address: AddressOption = None) -> None:
    """Print what this machine or cluster can hold, the versions in use, and whatever is wrong."""
    from raygeo.doctor import examine

    if not examine(address):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; errors meant for the user are printed without a traceback."""
    from raygeo.errors import RaygeoError

    try:
        app()
    except RaygeoError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
