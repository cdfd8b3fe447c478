"""An analysis that another package brings is found everywhere, with no file of raygeo touched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from raygeo.analyses.registry import analyses_with
from raygeo.errors import ConfigError

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

HERE = Path(__file__).parent


def install(folder: Path, value: str, name: str = "moved") -> None:
    """What an installer leaves of a package ``outside-geometry`` that names ``value`` as an analysis."""
    info = folder / "outside_geometry-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-geometry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[raygeo.analyses]\n{name} = {value}\n")


def run(script: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, [*folders, HERE, HERE.parent, HERE.parent.parent]))
    return subprocess.run(
        [sys.executable, "-c", dedent(script)],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


STUDY = """
    from raygeo.pipeline.config import parse_study
    raw = {"name": "s", "rollouts": {"sample": {}}, "runs": [{"loss": {"type": "sft"}}]}
"""


def test_it_is_allowed_in_a_study_file_and_its_options_are_checked(tmp_path):
    install(tmp_path, "outside:ANALYSIS")
    done = run(
        STUDY
        + """
    print(parse_study(raw | {"geometry": {"moved": {"above": 0.5}}}).geometry.moved.above)
    for wrong in ({"movd": None}, {"moved": {"abov": 1}}, {"moved": {"above": -1}}):
        try:
            parse_study(raw | {"geometry": wrong})
        except Exception as error:
            print(error)
    """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.5\n")
    assert "did you mean 'moved'?" in done.stdout
    assert "geometry.moved.abov: unknown key; did you mean 'above'?" in done.stdout
    assert "geometry.moved.above: Input should be greater than or equal to 0" in done.stdout


def test_it_is_computed_shown_and_tracked(tmp_path):
    install(tmp_path / "site", "outside:ANALYSIS")
    done = run(
        STUDY
        + f"""
    import json
    from pathlib import Path
    import torch
    from delta_cases import Q
    from tiny import tiny_qwen
    from raygeo.analyses.inputs import AnalysisInputs
    from raygeo.cluster.execution import in_process
    from raygeo.models.delta import save_full_delta
    from raygeo.models.run import Run
    from raygeo.pipeline.context import StageContext
    from raygeo.pipeline.geometry import analyse
    from raygeo.pipeline.report import log_metrics, save_page
    from raygeo.records import RunRecord
    from raygeo.report.page import PageContext
    from raygeo.store import Store
    from raygeo.tables import BASE, to_arrow
    from raygeo.tracking import Tracking

    root = Path({str(tmp_path)!r})
    tiny_qwen().save_pretrained(root / "base")
    runs = [Run(BASE, BASE, None)]
    for size in (3, 5):
        change = torch.zeros(32, 32)
        change[0, :size] = 1.0
        save_full_delta(root / f"run{{size}}", {{Q.format(0) + ".weight": change}})
        runs.append(Run(f"run{{size}}", f"key{{size}}", root / f"run{{size}}"))
    store = Store(root / "store")
    records = [RunRecord(run.name, run.key, "finished") for run in runs[1:]]
    store.publish_rows("runs", to_arrow("runs", [record.row() for record in records]))
    geometry = parse_study(raw).geometry
    asked = geometry.model_copy(update=dict.fromkeys(type(geometry).model_fields) | {{"moved": geometry.moved}})
    inputs = AnalysisInputs(
        base=root / "base", runs=runs, reference="run3", records={{r.run: r for r in records}},
        table=store.table, make_probes=dict,
    )
    context = StageContext(store, in_process)
    analyse(context, asked, inputs)
    context.check_whole()
    tracking = Tracking(store, "s", {{}})
    children = {{run.name: tracking.child(run.key, run.name, {{}}) for run in runs}}
    page = save_page(store, PageContext("t", "s", "run3", "2026-01-01T00:00:00+00:00"))
    log_metrics(tracking, children, page.metrics)
    tracking.close("FINISHED")
    client = tracking.remote.client
    print(json.dumps({{
        "rows": store.table("moved").to_pylist(),
        "revisions": store.revisions("moved"),
        "metric": client.get_run(tracking.run_id(children["run5"])).data.metrics["geometry/moved_entries"],
        "page": page.text,
    }}))
    """,
        tmp_path / "site",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == [{"run": "run3", "entries": 3}, {"run": "run5", "entries": 5}]
    assert found["revisions"] == {"moved": 3}
    assert found["metric"] == 5
    for text in (
        "How many weights moved?",
        "Weights that moved",
        "A count of moved weights",
        "Moved counts entries.",
        "tables/moved.parquet",
    ):
        assert text in found["page"]


def test_the_command_line_says_where_it_comes_from(tmp_path):
    install(tmp_path, "outside:ANALYSIS")
    done = run(
        """
    from typer.testing import CliRunner
    from raygeo.cli import app
    for asked in (["analyses"], ["analyses", "moved"]):
        print(CliRunner().invoke(app, asked).output)
    """,
        tmp_path,
    )
    lines = done.stdout.splitlines()
    assert any("moved" in line and "outside-geometry" in line for line in lines), done.stderr
    assert any("similarity" in line and "raygeo" in line for line in lines)
    assert "Entries whose change is larger than this" in done.stdout


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("outside:NOTHING", "cannot be loaded"),
        ("no_such_module:ANALYSIS", "cannot be loaded"),
        ("outside:MovedSettings", "not an Analysis"),
        ("raygeo.analyses.norms.analysis:ANALYSIS", "two analyses bring the analysis 'norms'"),
    ],
)
def test_one_that_does_not_fit_is_refused_by_name(tmp_path, monkeypatch, value, why):
    install(tmp_path, value)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=why):
        analyses_with.__wrapped__(())
