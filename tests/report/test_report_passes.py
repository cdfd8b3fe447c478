from report_study import REFERENCE, build_tables

from raygeo.analyses import registry
from raygeo.report import passes


def test_pass_at_k_is_a_table_a_benchmark_and_a_metric_a_k():
    view = registry.view(build_tables(), REFERENCE)
    sheet = passes.passes.make(view)["word-problems"]
    assert sheet.columns == ["run", "pass@1", "pass@2", "pass@4"]
    base = next(row for row in sheet.rows if row[0] == "base")
    assert base[1][0] == "42.0 %"
    found = {(run, name): value for run, name, value in passes.metrics(view)}
    [row] = [r for r in view.rows("pass_at_k") if (r["run"], r["k"]) == ("base", 4)]
    assert found["base", "word-problems/pass_at_4"] == row["pass_at_k"]
