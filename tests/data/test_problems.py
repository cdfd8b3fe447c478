"""Benchmarks named by a file or a data set, with the columns that they are published with."""

import json

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from raygeo.data.readers import read_prompts
from raygeo.data.readers.problems import ProblemsReader
from raygeo.errors import ConfigError, DataError
from raygeo.pipeline.config import Benchmark, parse_settings

GSM8K = [{"question": "1 + 1?", "answer": "Add.\n#### 2"}, {"question": "10 * 100?", "answer": "#### 1,000"}]
MATH = [{"problem": "Half of 3?", "solution": "It is.", "answer": "\\frac{3}{2}", "level": 1, "unique_id": "t/1.json"}]
INTERVALS = [{"problem": "Where is it?", "answer": "[0, 1]"}, {"problem": "What is it?", "answer": "[5]"}]
AIME = [{"ID": 60, "problem": "Find m+n.", "answer": 204}]


def write(path, rows):
    if path.suffix == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (GSM8K, [("1 + 1?", "2", "Add.\n#### 2"), ("10 * 100?", "1000", "#### 1,000")]),
        (MATH, [("Half of 3?", "\\frac{3}{2}", "It is.")]),
        (AIME, [("Find m+n.", "204", None)]),
        (INTERVALS, [("Where is it?", "[0, 1]", None), ("What is it?", "[5]", None)]),
    ],
)
def test_known_columns_are_read_by_a_path_alone(tmp_path, suffix, rows, expected):
    benchmark = parse_settings(Benchmark, {"name": "b", "problems": write(tmp_path / f"b.{suffix}", rows)}, "study")
    assert isinstance(benchmark.problems, ProblemsReader)
    found = read_prompts(benchmark.problems)
    assert [(p.prompt, p.gold, p.solution) for p in found] == expected
    assert (found[0].prompt_id == "t/1.json") == (rows is MATH)
    assert len(benchmark.problems.fingerprint()) == 64


def test_a_data_set_is_read_at_its_test_split_or_the_other(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, subset, *, split, revision):
        asked.append((name, subset, split))
        if split == "test" and name == "owner/aime":
            raise ValueError('Unknown split "test"')
        return datasets.Dataset.from_list(GSM8K if name == "openai/gsm8k" else AIME)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [p.gold for p in read_prompts(ProblemsReader(path="openai/gsm8k"))] == ["2", "1000"]
    assert [p.gold for p in read_prompts(ProblemsReader(path="owner/aime"))] == ["204"]
    assert asked == [("openai/gsm8k", "main", "test"), ("owner/aime", None, "test"), ("owner/aime", None, "train")]


def test_what_is_no_benchmark_is_refused(tmp_path, monkeypatch):
    neither = r"neither a \.jsonl, \.parquet or \.csv file nor a name on the hub"
    (tmp_path / "problems.txt").write_text("1?")
    monkeypatch.chdir(tmp_path.parent)
    for path in ("gsm8k", f"{tmp_path.name}/problems.txt"):
        with pytest.raises(DataError, match=neither):
            read_prompts(ProblemsReader(path=path))
    (tmp_path / "b.parquet").write_text("1?")
    with pytest.raises(DataError, match=r"cannot read .*b\.parquet as Parquet"):
        read_prompts(ProblemsReader(path=str(tmp_path / "b.parquet")))
    with pytest.raises(DataError, match="no field prompt, question or problem"):
        read_prompts(ProblemsReader(path=write(tmp_path / "b.jsonl", [{"text": "1?", "answer": "2"}])))
    with pytest.raises(ConfigError, match="problems"):
        parse_settings(Benchmark, {"name": "b", "problems": {"type": "nothing"}}, "study")
