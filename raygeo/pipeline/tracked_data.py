"""What runs were trained on and asked, as MLflow's data: by content keys, so that equal keys are equal data."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple

from raygeo.data.readers import Prompt
from raygeo.pipeline.published import run_records
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.student import Student
from raygeo.records import FINISHED
from raygeo.settings import content_key
from raygeo.store import Store
from raygeo.tracking import Data, Tracking


def learned_from(rollouts: Rollouts) -> Data:
    """The rollouts of a study, by the key of their unit."""
    counts = {row["name"]: row["value"] for row in rollouts.counts.to_pylist()}
    kept = {name: counts[name] for name in ("rows", "prompts", "correct") if counts.get(name) is not None}
    return Data("rollouts", rollouts.key, rollouts.store.location, kept)


def asked(store: Store, benchmarks: Mapping[str, Sequence[Prompt]]) -> list[Data]:
    """The problems of each benchmark."""
    return [
        Data(name, content_key([astuple(problem) for problem in problems]), store.location, {"problems": len(problems)})
        for name, problems in benchmarks.items()
    ]


def base_key(student: Student) -> str:
    """The key of the base's run in MLflow."""
    return f"{student.key}:base"


def log_asked(tracking: Tracking, base: str, store: Store, benchmarks: Mapping[str, Sequence[Prompt]]) -> None:
    """Tell MLflow what the finished runs of the store, and its run ``base``, were asked."""
    data = asked(store, benchmarks)
    records = run_records(store).values()
    for key in (base, *(record.key for record in records if record.status == FINISHED and record.leg is None)):
        tracking.inputs(key, "evaluation", data)
