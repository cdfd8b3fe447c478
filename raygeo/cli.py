"""The command line: ``raygeo init | run | plan | compare | data | losses | analyses | show | report | ui | ...``."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raygeo.logs import name_lines

if TYPE_CHECKING:
    from raygeo.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What each offline reasoning loss does to the weights of a student.",
)

StoreOption = Annotated[str | None, typer.Option("--store", help="Path or URI of the store; overrides the study's.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Override a setting, as a.b=c; may be repeated.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait while another process works on the store.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Remove it without asking.")]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Path or URI of a store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but what is wrong.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Print every task, as the log file has it.")]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")]
AddressOption = Annotated[str | None, typer.Option(help="A running Ray cluster; by default RAY_ADDRESS, else none.")]


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the command with the exit code a shell gives them, without a traceback or Ray left."""
    from raygeo.interrupts import asked, handled

    with handled():
        try:
            yield
        except KeyboardInterrupt:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
            raise typer.Exit(128 + (asked() or SIGINT)) from None


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"raygeo {version('raygeo')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """What each offline reasoning loss does to the weights of a student."""


@app.command()
def run(
    study: StudyArgument,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    store: StoreOption = None,
    address: AddressOption = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and plan it; make nothing.")] = False,
    memory_check: Annotated[bool, typer.Option(help="Refuse what is not thought to fit, before training.")] = True,
    wait: WaitOption = False,
    allow_failures: Annotated[bool, typer.Option("--allow-failures", help="End with 0 though a part failed.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a study: whatever its store lacks is made, in order; the rest is taken from the store."""
    with stoppable():
        from raygeo.pipeline.config import load_study

        given = load_study(study, overrides, store)  # what is wrong in it is told before Ray is imported
        if dry_run:
            from raygeo.pipeline.rehearsal import rehearse_study

            if not rehearse_study(given, address=address, until=until, quiet=quiet):
                raise typer.Exit(1)
            return
        from raygeo.pipeline.study import run_study

        run_study(
            given,
            address=address,
            until=until,
            progress=_progress(quiet, verbose),
            memory_check=memory_check,
            wait=wait,
            allow_failures=allow_failures,
        )


@app.command()
def quickstart(
    store: StoreOption = None,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    address: AddressOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the shipped study `quickstart`: six losses on a small student, in minutes, without a download."""
    run("quickstart", overrides, store, address, quiet=quiet, verbose=verbose)


@app.command()
def studies(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the shipped studies, which `run`, `plan` and `doctor` know by name; with a name, print its file."""
    from raygeo.errors import ConfigError
    from raygeo.nearest import hint
    from raygeo.pipeline.shipped import shipped_studies

    known = shipped_studies()
    if name is None:
        if as_json:
            _say_json([{"name": study.name, "about": study.about} for study in known.values()])
            return
        width = max(map(len, known))
        for study in known.values():
            typer.echo(f"{study.name.ljust(width)}  {study.about}")
        typer.echo("raygeo studies NAME > mine.yaml copies one, to be changed.")
        return
    if name not in known:
        raise ConfigError(f"{name!r} is no shipped study; {hint(name, known, 'they are')}")
    typer.echo(known[name].text, nl=False)


def _progress(quiet: bool, verbose: bool) -> "Progress":
    """What a command shows of its work."""
    from rich.console import Console

    from raygeo.progress import Progress

    if quiet and verbose:
        raise typer.BadParameter("give either --quiet or --verbose")
    name_lines(verbose=verbose)
    return Progress(Console(stderr=True, quiet=quiet))


def _check_page(name: str | None, page: Path | None, as_json: bool) -> None:
    """Refuse what a page of all would leave unheard."""
    if page is not None and (name is not None or as_json):
        raise typer.BadParameter("give --page alone: it is the page of all, as Markdown")


def _say_json(plain: Any) -> None:
    from raygeo.plain import as_json

    typer.echo(as_json(plain))


@app.command()
def plan(
    study: StudyArgument,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    store: StoreOption = None,
    device: Annotated[
        str | None,
        typer.Option(help="What it would run on: h100, a100, ..., cpu, or FLOPS:GB; by default this."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="How many of them.")] = None,
    shapes: Annotated[
        str | None, typer.Option(help="A config.json, a folder with one, or a hub id, instead of the student's.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="ROWS:PROMPT:COMPLETION, in tokens, instead of reading the rollouts.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what each stage of a study will take, before anything starts: memory, disk, hours; what does not fit."""
    with stoppable():
        from raygeo.pipeline.config import load_study

        given = load_study(study, overrides, store)
        from raygeo.pipeline.budget.command import plan_study

        if not plan_study(given, device=device, gpus=gpus, shapes=shapes, data=data, json=as_json):
            raise typer.Exit(1)


@app.command()
def compare(
    base: Annotated[
        str, typer.Argument(help="The model they were trained from, a folder or a hub id; or a YAML file of all this.")
    ],
    models: Annotated[
        list[str],
        typer.Argument(help="Fine-tuned models or PEFT LoRA adapters: folders or hub ids.", show_default=False),
    ] = [],  # noqa: B006 (typer copies it)
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
    wait: WaitOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare the weights of models that were fine-tuned from one base, without a study; writes the same page."""
    with stoppable():
        from raygeo.pipeline.compare import compare_models
        from raygeo.pipeline.comparison import load_comparison, plan_comparison

        said = {"store": store, "solutions": solutions, "reference": reference}
        if not models and not names and base.endswith((".yaml", ".yml")):
            comparison = load_comparison(base, overrides=overrides, **said)
        else:
            comparison = plan_comparison(base, models, names=names, overrides=overrides, **said)
        compare_models(comparison, address=address, progress=_progress(quiet, verbose), wait=wait)


@app.command()
def data(
    paths: Annotated[list[str], typer.Argument(help="Files, a folder, a data set on the hub, or a study file.")],
    model: Annotated[str | None, typer.Option(help="Show tokens as this model reads them: a folder or hub id.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Read this many records, the first ones; 0 reads all.")] = 1000,
    overrides: Annotated[
        list[str],
        typer.Option("--set", help="A setting of the reader or of chat, as fields.completion=answer; may be repeated."),
    ] = [],  # noqa: B006 (typer copies it)
    as_json: JsonOption = False,
) -> None:
    """Show what would be read of rollouts: their shape, a sample row, counts, and what is set aside and why."""
    from raygeo.pipeline.preview import preview

    preview(paths, overrides=overrides, model=model, rows=rows, json=as_json)


@app.command()
def losses(
    name: Annotated[str | None, typer.Argument(metavar="[TYPE]", help="Say all about this one.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the reference page of all losses here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the losses a study can name; with a type, print its formula, needs and options in full."""
    from rich import box
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from raygeo.errors import ConfigError
    from raygeo.losses.catalogue import describe
    from raygeo.losses.reference import reference_page
    from raygeo.losses.registry import LOSSES, ORIGINS, unknown
    from raygeo.outputs import output_file, write_output

    _check_page(name, page, as_json)
    if name is not None and name not in LOSSES:
        raise ConfigError(f"{unknown(name)}.")
    console = Console()
    if page is not None:
        write_output(output_file(page), reference_page(LOSSES.values()))
        console.print(f"{page}: {len(LOSSES)} losses")
        return
    if as_json:
        plain = [asdict(describe(loss)) | {"from": ORIGINS[loss_type]} for loss_type, loss in LOSSES.items()]
        _say_json(plain if name is None else plain[[*LOSSES].index(name)])
        return
    if name is None:
        table = Table("type", "minimised", "needs besides graded rollouts", "from", box=box.SIMPLE_HEAD, pad_edge=False)
        for entry in map(describe, LOSSES.values()):
            needs = Text("; ".join(entry.needs))
            table.add_row(Text(entry.type, "bold"), Text(entry.formula), needs, Text(ORIGINS[entry.type]))
        console.print(table)
        console.print("raygeo losses TYPE prints one in full, with its options.")
        return
    entry = describe(LOSSES[name])
    origin = f" (type: {entry.type}, from {ORIGINS[name]})"
    console.print(Text.assemble((entry.title, "bold"), f"{origin}\n{entry.formula}\n{entry.paper}\n"))
    console.print(Markdown(entry.description))
    console.print(
        Text(f"\naveraged over: {entry.unit}s\nneeds: {'; '.join(entry.needs) or 'nothing but graded rollouts'}\n")
    )
    table = Table("option", "values", "default", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for option in entry.options:
        table.add_row(option.name, Text(option.values), Text(option.default), Markdown(option.description))
    console.print(table)


@app.command()
def analyses(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Say all about this one.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write the reference page of all analyses here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the analyses a study can ask for; with a name, print its options, tables and figures in full."""
    from rich import box
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from raygeo.analyses.reference import NEEDS, entry, plain_entry, reference_page
    from raygeo.analyses.registry import analyses, origins
    from raygeo.errors import ConfigError
    from raygeo.nearest import hint
    from raygeo.outputs import output_file, write_output

    _check_page(name, page, as_json)
    known, console = analyses(), Console()
    if page is not None:
        write_output(output_file(page), reference_page())
        console.print(f"{page}: {len(known)} analyses")
        return
    if name is not None and name not in known:
        raise ConfigError(f"{name!r}: no such analysis; {hint(name, known, 'the analyses are')}")
    found = origins()
    if as_json:
        plain = {key: plain_entry(analysis) | {"from": found[key]} for key, analysis in known.items()}
        _say_json([*plain.values()] if name is None else plain[name])
        return
    if name is not None:
        console.print(Markdown(entry(known[name])))
        return
    table = Table("analysis", "answers", "needs", "from", box=box.SIMPLE_HEAD, pad_edge=False)
    for analysis in known.values():
        needs = "; ".join(text for need, text in NEEDS.items() if need in analysis.needs)
        table.add_row(Text(analysis.name, "bold"), Text(analysis.question), Text(needs), Text(found[analysis.name]))
    console.print(table)
    console.print("raygeo analyses NAME prints one in full, with its options and tables.")


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option("--out", help="Write it here; by default to standard output.")] = None,
) -> None:
    """Print the JSON schema of a study file, by which editors complete and check it."""
    import json

    from raygeo.outputs import output_file, write_output
    from raygeo.pipeline.schema import study_schema

    file = None if out is None else output_file(out)
    text = json.dumps(study_schema(), indent=1, ensure_ascii=False)
    if file is None:
        typer.echo(text)
    else:
        write_output(file, f"{text}\n")


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder, or a data set on the hub.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The student: a folder or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The study file to write; it must not exist.")] = Path(
        "study.yaml"
    ),
    rows: Annotated[int, typer.Option(min=0, help="Read this many records, the first ones; 0 reads all.")] = 1000,
    overrides: Annotated[
        list[str],
        typer.Option("--set", help="A setting of the reader or of chat, as fields.completion=answer; may be repeated."),
    ] = [],  # noqa: B006 (typer copies it)
) -> None:
    """Write a study of graded rollouts and a model, with the losses that the rollouts allow; `raygeo plan` reads it."""
    from raygeo.pipeline.drafting import draft_study

    for said in draft_study(data, model, out, overrides=overrides, rows=rows):
        typer.echo(said)


@app.command()
def show(
    store: StoreArgument,
    name: Annotated[str | None, typer.Argument(metavar="[RUN|TABLE]", help="Show this run, or this table.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a table, the first ones.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Print how far a store's study is, its results and its verdict; or a run's settings and metrics; or a table."""
    from rich.console import Console

    from raygeo.pipeline.show import show as show_store
    from raygeo.store import Store

    show_store(Store.found(store), name, rows=rows, as_json=as_json, out=Console())


@app.command()
def report(store: Annotated[str, typer.Argument(help="Path or URI of a store.")]) -> None:
    """Write report.html anew from the tables of a store, and send to MLflow what waits there."""
    from raygeo.pipeline.report import rewrite_report
    from raygeo.pipeline.revisions import outdated_tables
    from raygeo.store import Store
    from raygeo.tracking import send_queued

    opened = Store.found(store)
    page = rewrite_report(opened)
    typer.echo(page.path)
    for lacking in page.failures.sentences():
        typer.secho(lacking, fg="yellow", err=True)
    for said in outdated_tables(opened):
        typer.echo(said)
    if sent := send_queued(opened):
        typer.echo(sent)


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run, as the study's page calls it.")],
    store: Annotated[str, typer.Option("--store", help="Path or URI of the store.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for it.")],
    merged: Annotated[bool, typer.Option("--merged", help="A complete model, base and delta added.")] = False,
) -> None:
    """Write a run as a PEFT adapter, or as a merged model, with its tokenizer, a model card and its benchmarks."""
    from raygeo.pipeline.export import export_run
    from raygeo.store import Store

    exported = export_run(Store.found(store), name, out, merged=merged)
    typer.echo(f"{exported.folder}: {exported.folder / 'README.md'} says what it is, and how to measure it again")
    for lacking in exported.missing:
        typer.secho(f"left out: {lacking}", fg="yellow", err=True)


@app.command()
def ui(
    store: Annotated[str, typer.Argument(help="Path of a store.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow over a study's runs on 127.0.0.1 (Ctrl-C ends it)."""
    from raygeo.paths import without_credentials
    from raygeo.store import Store
    from raygeo.store.copying import point_artifacts
    from raygeo.tracking import tracking_uri
    from raygeo.tracking.pages import pages_of
    from raygeo.tracking.server import check_free

    opened = Store.found(store)
    uri = tracking_uri(opened)
    if uri.startswith("http"):
        server = without_credentials(uri)
        typer.echo(f"The runs are on the MLflow server at {server}; open {pages_of(opened, uri, server)}")
        return
    if "MLFLOW_TRACKING_URI" not in os.environ:
        point_artifacts(opened)
    check_free(port)
    typer.echo(f"MLflow over {uri}: {pages_of(opened, uri, f'http://127.0.0.1:{port}')}")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"])


stores = typer.Typer(no_args_is_help=True, help="See what is in a store, and keep it in order.")
app.add_typer(stores, name="store")


@stores.command("ls")
def list_store(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Print what a store holds: who writes to it, its studies and runs, and how much of each kind."""
    from raygeo.store import Store, commands

    commands.list_store(Store.found(store), json=as_json)


@stores.command("rm")
def remove(
    store: StoreArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Runs, studies, or kinds as `ls` has them.")],
    yes: YesOption = False,
    wait: WaitOption = False,
) -> None:
    """Remove the weights of runs, what only these studies need, or all of a kind; what is run again is made anew."""
    from raygeo.store import Store, commands

    with stoppable():
        if not commands.remove_from(Store.found(store), names, yes=yes, wait=wait):
            raise typer.Exit(1)


@stores.command("gc")
def clean(store: StoreArgument, yes: YesOption = False, wait: WaitOption = False) -> None:
    """Remove what killed processes left behind and what no study in the store needs, after asking."""
    from raygeo.store import Store, commands

    with stoppable():
        if not commands.clean(Store.found(store), yes=yes, wait=wait):
            raise typer.Exit(1)


@stores.command()
def verify(store: StoreArgument) -> None:
    """Read everything in a store to its end, and name what is broken."""
    from raygeo.store import Store, commands

    if not commands.verify(Store.found(store)):
        raise typer.Exit(1)


@stores.command()
def copy(
    store: StoreArgument,
    to: Annotated[str, typer.Argument(metavar="TO", help="A new path or URI, or a copy that was interrupted.")],
    wait: WaitOption = False,
) -> None:
    """Copy a whole store, MLflow's runs and artifacts too, and verify the copy."""
    from raygeo.store import Store, commands

    with stoppable():
        if not commands.copy(Store.found(store), to, wait=wait):
            raise typer.Exit(1)


@app.command()
def doctor(
    study: Annotated[str | None, typer.Argument(help="A study, to be held against what the cluster has.")] = None,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    store: Annotated[str | None, typer.Option("--store", help="Path or URI of a store, tried on every node.")] = None,
    address: AddressOption = None,
) -> None:
    """Ask every node of a cluster, or this machine, what it has, and print what is wrong: then the exit code is 1."""
    with stoppable():
        from raygeo.pipeline.config import load_study

        given = None if study is None else load_study(study, overrides, store)
        from raygeo.doctor.command import examine

        if not examine(given, store=store, address=address):
            raise typer.Exit(1)


@contextmanager
def told() -> Iterator[None]:
    """Print errors meant for the user without a traceback, and end with exit code 2."""
    from raygeo.errors import RaygeoError
    from raygeo.paths import without_credentials

    try:
        yield
    except RaygeoError as error:
        typer.secho(without_credentials(f"{type(error).__name__}: {error}"), fg="red", err=True)
        raise SystemExit(2) from None


def main(command: str | None = None) -> None:
    """Run the command line, or one ``command`` of it as a program of its own."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries, which fill a log
    name_lines()
    with told():
        if command is None:
            app()
        else:
            typer.main.get_group(app).commands[command].main(prog_name=f"python {sys.argv[0]}")


if __name__ == "__main__":
    main()
