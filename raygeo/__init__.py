"""raygeo: what each offline reasoning loss does to the weights of a student."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygeo.pipeline.comparison import AnyModels
    from raygeo.pipeline.config import Overrides, Study
    from raygeo.pipeline.results import Results

__version__ = "0.1.0"


def open(location: "str | PathLike[str]") -> "Results":
    """Open what a study or comparison left: ``raygeo.open("store/quickstart").table("runs").to_pandas()``.

    Raises:
        ConfigError: ``location`` is neither a text nor a path.
        StoreError: there is no store of a study or comparison at ``location``.
    """
    from raygeo.errors import ConfigError
    from raygeo.pipeline.results import Results
    from raygeo.store import Store

    if not isinstance(location, str | PathLike):
        raise ConfigError(f"a store is given as a path or a URI, not as {type(location).__name__}.")
    return Results(Store.found(str(location)))


def run(
    study: "str | PathLike[str] | Mapping[str, Any] | Study",
    *,
    overrides: "Overrides" = (),
    store: "str | PathLike[str] | None" = None,
    address: str | None = None,
    until: str | None = None,
    memory_check: bool = True,
    wait: bool = False,
    allow_failures: bool = False,
) -> "Results":
    """Run a study, or what its store lacks of it, and open what it left, as ``raygeo run`` does.

    Args:
        study: a file, its settings as plain data, or a ``Study``.
        overrides: settings over those: ``"a.b=c"``, several of these, or ``{"a.b": c}``.
        store: a path or URI in place of the study's own.
        address: a running Ray cluster; by default RAY_ADDRESS, else none.
        until: the last stage to run.
        memory_check: whether to refuse what is not thought to fit.
        wait: whether to wait while another process works on the store.
        allow_failures: whether to return though a part failed, which ``failures`` and the page name.

    Raises:
        RaygeoError: what is wrong and what to do about it; everything finished before stays in the store.
    """
    from raygeo.pipeline.config import load_study

    given = load_study(study, overrides, store)  # what is wrong in it is told before Ray is imported
    from raygeo.pipeline.results import Results
    from raygeo.pipeline.study import run_study

    return Results(
        run_study(
            given,
            address=address,
            until=until,
            memory_check=memory_check,
            wait=wait,
            allow_failures=allow_failures,
        )
    )


def compare(
    base: "str | PathLike[str]",
    models: "AnyModels",
    *,
    solutions: "str | PathLike[str] | None" = None,
    reference: str | None = None,
    overrides: "Overrides" = (),
    store: "str | PathLike[str] | None" = None,
    address: str | None = None,
    wait: bool = False,
) -> "Results":
    """Compare models that were fine-tuned from one base, and open what was found, as ``raygeo compare`` does.

    Args:
        base: the model they were trained from, a folder or a hub id.
        models: complete models, PEFT LoRA adapters or deltas of raygeo's, by name; those of a list, or a single
            one, are named after their folders.
        solutions: JSON lines with ``prompt`` and ``completion``, on which likelihood, states and curvature are
            measured; without it only weights are compared.
        reference: the model that others are compared with in summaries; by default the first.
        overrides: settings: ``"a.b=c"``, several of these, or ``{"a.b": c}``.
        store: a path or URI; by default ``store/comparison``.
        address: a running Ray cluster; by default RAY_ADDRESS, else none.
        wait: whether to wait while another process works on the store.

    Raises:
        RaygeoError: what is wrong and what to do about it; everything finished before stays in the store.
    """
    from raygeo.pipeline.comparison import plan_comparison

    plan = plan_comparison(
        base,
        models,
        store=store,
        solutions=solutions,
        reference=reference,
        overrides=overrides,
    )
    from raygeo.pipeline.compare import compare_models
    from raygeo.pipeline.results import Results

    return Results(compare_models(plan, address=address, wait=wait))
