"""What an old store says of itself, and what is made anew."""

from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta_cases import Q, gaussian
from tiny import tiny_qwen

from raygeo.analyses.norms.workload import Norms, NormSettings
from raygeo.cluster.execution import in_process
from raygeo.data.grading import RULES
from raygeo.evaluation.answers import Answers
from raygeo.losses.sft import SFT
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.pipeline.context import StageContext
from raygeo.pipeline.published import published_tables
from raygeo.pipeline.report import save_page
from raygeo.pipeline.revisions import outdated_tables
from raygeo.records import RunRecord
from raygeo.report.page import PageContext
from raygeo.settings import unit_key
from raygeo.tables import to_arrow
from raygeo.training.settings import RunSpec, TrainingSettings

pytestmark = pytest.mark.cluster


class Heard:
    """A progress that keeps what it is told."""

    def __init__(self, progress):
        self.progress, self.lines = progress, []

    def say(self, text):
        self.lines.append(text)

    def bar(self, title, total):
        return self.progress.bar(title, total)


def norms(tmp_path, store):
    """Publish the norms of two runs; what was said, and how many units were made and found."""
    if not (tmp_path / "base").exists():
        tiny_qwen().save_pretrained(tmp_path / "base")
        for seed, name in enumerate("ab"):
            save_full_delta(tmp_path / name, {Q.format(0) + ".weight": gaussian(32, 32, seed=seed)})
    context = StageContext(store, in_process)
    context.progress = heard = Heard(context.progress)
    context.publish(Norms(NormSettings(), [Run(name, name, tmp_path / name) for name in "ab"], tmp_path / "base"))
    return heard.lines, context.made, context.reused


def test_units_of_an_older_revision_are_made_anew_and_counted(tmp_path, store, monkeypatch):
    assert norms(tmp_path, store) == ([], 2, 0)
    assert norms(tmp_path, store) == ([], 0, 2)
    assert outdated_tables(store) == []
    monkeypatch.setattr(Norms, "revision", 2)
    assert outdated_tables(store) == [
        "The table deltas was made by other revisions of the code: norms of revision 1 (now 2). Run the study again to "
        "make it anew."
    ]
    lines, made, reused = norms(tmp_path, store)
    assert (made, reused) == (2, 0)
    assert lines == ["  norms: 2 units of revision 1 made anew by revision 2, which changed the numbers"]
    assert outdated_tables(store) == []
    assert store.revisions("deltas") == {"norms": 2}


def test_runs_of_other_revisions_are_counted(store, monkeypatch):
    spec = RunSpec(name="sft", loss=SFT(), training=TrainingSettings(steps=1))
    plain = {"loss": SFT().model_dump(mode="json"), "training": spec.training.model_dump(mode="json")}
    record = RunRecord("sft", spec.key("student", "rollouts"), "finished", **plain)
    store.publish_rows("runs", to_arrow("runs", [record.row()]))
    assert outdated_tables(store) == []
    monkeypatch.setattr(SFT, "revision", 2)
    assert outdated_tables(store) == [
        "1 run was trained with revision 1.1 of trainer and loss, which is now 1.2. Run the study again to make it "
        "anew."
    ]


def test_a_table_from_before_revisions_is_named(store, tmp_path):
    Path(store.path("tables")).mkdir()
    old = to_arrow("deltas", [{"run": "a", "norm": 1.0}], Norms.tables["deltas"]).replace_schema_metadata()
    pq.write_table(old, store.path("tables", "deltas.parquet"))
    assert outdated_tables(store) == [
        "Made before revisions were kept: the tables deltas. Run the study again to make it anew."
    ]


@pytest.mark.parametrize("table", ["accuracy", "mcnemar", "pass_at_k", "trials"])
def test_a_table_of_what_follows_from_others_says_what_it_was_made_of(store, table):
    [first, *_] = to_arrow(table, []).schema.names
    rows = to_arrow(table, [{first: "a"}])
    store.publish_rows(table, rows)
    assert outdated_tables(store) == [
        f"Made before revisions were kept: the tables {table}. Run the study again to make it anew."
    ]
    made_by = {"answers": Answers.revision, "grading": RULES}
    store.publish_rows(table, rows, made_by)
    assert outdated_tables(store) == []
    store.publish_rows(table, rows, made_by | {"grading": RULES - 1})
    assert outdated_tables(store) == [
        f"The table {table} was made by other revisions of the code: grading of revision {RULES - 1} (now {RULES}). "
        "Run the study again to make it anew."
    ]
    store.publish_rows(table, rows.slice(0, 0))
    assert outdated_tables(store) == []


def test_units_from_before_revisions_are_counted(store):
    assert store.unversioned() == 0
    for key in ("0123456789abcdef", unit_key(1, "a")):
        store.write_unit(key, {"counts": [], "set_aside": []})
    assert store.unversioned() == 1


def test_a_table_with_other_columns_is_left_out_of_the_page_and_named(store):
    Path(store.path("tables")).mkdir()
    old = {"run_a": ["a"], "run_b": ["b"], "alpha": [0.5], "loss": [1.0]}
    pq.write_table(pa.table(old), store.path("tables", "paths.parquet"))
    assert published_tables(store)["paths"].num_rows == 0
    said = outdated_tables(store)[-1]
    assert said.startswith(
        "Left out, because their columns have other names now: the tables paths (no probe, metric, nll"
    )
    context = PageContext("t", "s", "a", "2026-01-01T00:00:00+00:00")
    assert said in unescape(save_page(store, context).text)
