import gzip
import json
from itertools import permutations
from tempfile import TemporaryDirectory
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from raygeo.data.merging import validate
from raygeo.data.readers import AnyPromptReader, AnyReader, Prompt, read_prompts
from raygeo.data.readers.csv import CsvReader
from raygeo.data.readers.datasets import DatasetsReader
from raygeo.data.readers.files import hash_paths
from raygeo.data.readers.gsm8k import Gsm8kReader
from raygeo.data.readers.jsonl import JsonlReader
from raygeo.data.readers.parquet import ParquetReader
from raygeo.data.readers.solutions import SolutionsReader
from raygeo.data.validation import prompt_digest
from raygeo.errors import DataError

ROWS = [
    {"question": "1 + 1 =", "out": {"text": "#### 2", "scores": [1.0, 0.5]}, "id": 7},
    {"question": "2 + 2 =", "out": {"text": "#### 5", "scores": [0.0, 0.5]}, "id": 8},
]
FIELDS = {"prompt": "question", "completion": "out.text", "reward": "out.scores.0", "prompt_id": "id"}
EXPECTED = [("1 + 1 =", "#### 2", 1.0, "7"), ("2 + 2 =", "#### 5", 0.0, "8")]


def write_lines(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def essentials(reader):
    rows = validate(reader.rollouts()).rollouts.to_pylist()
    return [(row["prompt"], row["completion"], row["reward"], row["prompt_id"]) for row in rows]


def test_jsonl_with_dotted_fields(tmp_path):
    path = write_lines(tmp_path / "teacher.jsonl", *ROWS)
    reader = JsonlReader(path=path, fields=FIELDS)
    assert essentials(reader) == EXPECTED
    assert validate(reader.rollouts()).rollouts["source"].to_pylist() == ["teacher", "teacher"]
    assert essentials(JsonlReader(path=path, fields=FIELDS, limit=1)) == EXPECTED[:1]


def test_jsonl_compressed_by_uri_and_from_several_files(tmp_path):
    first, second = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"
    first.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    second.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[1]).encode())  # a byte-order mark, and no newline at the end
    assert essentials(JsonlReader(path=(first.as_uri(), str(second)), fields=FIELDS)) == EXPECTED


def test_jsonl_says_where_bad_lines_are(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"prompt": "p", "completion": "c", "correct": True}).encode()
    lines = [
        b"{",
        b"",
        b"[1]",
        b'"\xff"',
        good,
        b'{"prompt": "p"}',
        b"[" * 100_000,
        good,
        b'{"a": ' + b"1" * 5_000 + b"}",
    ]
    path.write_bytes(b"\n".join(lines))
    records = list(JsonlReader(path=str(path)).rollouts())
    assert [(record.line, record.error) for record in records] == [
        (1, "not JSON"),
        (3, "not a JSON object"),
        (4, "not UTF-8"),
        (5, None),
        (6, "missing field 'completion'"),
        (7, "not JSON"),
        (8, None),
        (9, "not JSON"),
    ]
    validated = validate(records, max_set_aside=0.9)
    assert validated.rollouts.num_rows == 2
    assert validated.set_aside["source"].to_pylist() == [str(path)] * 6


def test_a_renamed_field_must_be_there(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c", "reward": 1.0, "score": None})
    assert next(JsonlReader(path=path).rollouts()).error is None
    assert next(JsonlReader(path=path, fields={"reward": "score"}).rollouts()).error == "missing field 'score'"
    resolved = JsonlReader.model_validate(JsonlReader(path=path).model_dump(mode="json"))  # all defaults written out
    assert next(resolved.rollouts()).error is None


def test_logprobs_are_read_from_the_field_that_is_named(tmp_path):
    rows = [{**row, "out": {**row["out"], "logprobs": [-0.5, -0.25]}} for row in ROWS]
    path = write_lines(tmp_path / "a.jsonl", *rows)
    named = {**FIELDS, "logprobs": "out.logprobs"}
    assert validate(JsonlReader(path=path, fields=FIELDS).rollouts()).rollouts["logprobs"].null_count == 2
    for reader in (JsonlReader(path=path, fields=named), ParquetReader(path=str(tmp_path / "b"), fields=named)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b")
        assert validate(reader.rollouts()).rollouts["logprobs"].to_pylist() == [[-0.5, -0.25]] * 2
    path = write_lines(tmp_path / "c.jsonl", *ROWS)
    records = list(JsonlReader(path=path, fields=named).rollouts())
    assert [record.error for record in records] == ["missing field 'out.logprobs'"] * 2


def test_a_key_with_dots_goes_before_a_path(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "a.b": "key", "a": {"b": "path"}, "correct": True})
    (record,) = JsonlReader(path=path, fields={"completion": "a.b"}).rollouts()
    assert record.values["completion"] == "key"


def test_template(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"prompt": r"what is {x} in \frac{1}{x}?", "completion": "c", "correct": True},
        {"prompt": " ", "completion": "c", "correct": True},
    )
    reader = JsonlReader(path=path, template="Question: {prompt}\nAnswer:")
    validated = validate(reader.rollouts(), max_set_aside=0.5)
    assert validated.rollouts["prompt"].to_pylist() == ["Question: what is {x} in \\frac{1}{x}?\nAnswer:"]
    assert validated.set_aside["reason"].to_pylist() == ["empty prompt"]
    for template in ("Question:", "{prompt} {prompt}"):
        with pytest.raises(ValidationError, match="exactly once"):
            JsonlReader(path=path, template=template)


def test_parquet_files_and_folders(tmp_path):
    for number, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([{**row, "unused": 1}]), tmp_path / f"{number}.parquet")
    assert essentials(ParquetReader(path=str(tmp_path), fields=FIELDS)) == EXPECTED
    uris = tuple((tmp_path / f"{number}.parquet").as_uri() for number in range(2))
    reader = ParquetReader(path=uris, fields=FIELDS)
    assert essentials(reader) == EXPECTED
    assert [record.line for record in reader.rollouts()] == [1, 1]


def test_parquet_lines_run_on_over_batches(tmp_path):
    table = pa.table({"prompt": [f"p{n}" for n in range(250)], "completion": ["c"] * 250, "correct": [True] * 250})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    records = list(ParquetReader(path=str(tmp_path / "a.parquet")).rollouts())
    assert [record.line for record in records] == list(range(1, 251))
    assert records[123].values["prompt"] == "p123"


PLAIN = pa.table(
    {"prompt": ["a", "b"], "completion": ["#### 1", "#### 2"], "gold": ["1", "3"], "correct": [True, False]}
)
FULL = pa.table({
    "prompt": ["c", "d"], "completion": ["#### 1", "#### 2"], "gold": ["1", "2"], "correct": [True, True],
    "reward": [0.25, 0.75], "truncated": [True, True],
})  # fmt: skip
INTEGERS = pa.table({"prompt": ["e"], "completion": ["#### 9"], "gold": [9], "correct": [True], "reward": [1]})
NULLS = pa.table({
    "prompt": ["f"], "completion": ["#### 7"], "gold": ["7"], "reward": pa.nulls(1), "truncated": pa.nulls(1),
})  # fmt: skip
SHARDS_HOLD = {
    ("a", "1", True, 1.0, False), ("b", "3", False, 0.0, False), ("c", "1", True, 0.25, True),
    ("d", "2", True, 0.75, True), ("e", "9", True, 1.0, False), ("f", "7", True, 1.0, False),
}  # fmt: skip


@pytest.mark.parametrize("order", permutations([PLAIN, FULL, INTEGERS, NULLS]))
def test_the_order_and_the_columns_of_shards_change_no_row(tmp_path, order):
    for number, shard in enumerate(order):
        pq.write_table(shard, tmp_path / f"{number}.parquet")
    reader = ParquetReader(path=str(tmp_path))
    before = reader.fingerprint()
    for name in ("README.md", "_SUCCESS", ".0.parquet.crc", "_metadata.parquet", "_old/0.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not Parquet")
    validated = validate(reader.rollouts())
    rows = validated.rollouts.select(["prompt", "gold", "correct", "reward", "truncated"]).to_pylist()
    assert {tuple(row.values()) for row in rows} == SHARDS_HOLD
    assert validated.set_aside.num_rows == 0
    assert reader.fingerprint() == before
    listed = ParquetReader(path=tuple(str(tmp_path / f"{number}.parquet") for number in range(4)))
    assert listed.fingerprint() == before
    assert validate(listed.rollouts()).rollouts.equals(validated.rollouts)


cells = st.fixed_dictionaries({}, optional={
    "reward": st.floats(-1e9, 1e9) | st.integers(-9, 9) | st.none(), "gold": st.integers(0, 2**62) | st.none(),
    "truncated": st.booleans() | st.none(), "sample": st.integers(0, 9) | st.none(),
    "logprobs": st.lists(st.floats(-9, 0), max_size=2) | st.none(),
})  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(cells, min_size=1, max_size=3), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_records_are_as_written_whatever_other_shards_hold(shards, random):
    def read(order):
        with TemporaryDirectory() as folder:
            for number, shard in enumerate(order):
                pq.write_table(pa.Table.from_pylist(shard), f"{folder}/{number}.parquet")
            return [record.values for record in ParquetReader(path=folder).rollouts()]

    rows = iter(range(100))
    whole = [
        [{"prompt": f"p{next(rows)}", "completion": "c", "correct": True, **row} for row in shard] for shard in shards
    ]
    for shard in whole:  # a shard has one type a column: pyarrow would refuse to write anything else
        if any(isinstance(row.get("reward"), float) for row in shard):
            for row in shard:
                row["reward"] = None if row.get("reward") is None else float(row["reward"])
        names = dict.fromkeys(name for row in shard for name in row)
        shard[:] = [{name: row.get(name) for name in names} for row in shard]
    shuffled = random.sample(whole, len(whole))
    for order in (whole, shuffled):
        expected = [row for shard in order for row in shard]
        for found, row in zip(read(order), expected, strict=True):
            assert {k: v for k, v in found.items() if v is not None and k != "source"} == {
                k: v for k, v in row.items() if v is not None
            }


@pytest.mark.parametrize(
    ("column", "a", "b"),
    [
        ("reward", [1.0], ["1.0"]),
        ("reward", [1.0], [True]),
        ("correct", [True], [1]),
        ("completion", ["c"], [["c"]]),
        ("logprobs", [[-1.0]], [["-1"]]),
    ],
)
def test_types_that_contradict_each_other_are_named_with_column_and_files(tmp_path, column, a, b):
    common = {"prompt": ["p"], "completion": ["c"], "correct": [True]}
    empty = {"logprobs": [[]]} if column == "logprobs" else {column: [None]}
    for number, content in enumerate((empty, {column: a}, {column: b})):
        pq.write_table(pa.table(common | content), tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match=f"column '{column}'") as raised:
        next(ParquetReader(path=str(tmp_path)).rollouts())
    assert "1.parquet" in str(raised.value)
    assert "2.parquet" in str(raised.value)


def test_parquet_columns_of_one_name_and_folders_without_parquet_are_refused(tmp_path):
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(DataError, match=r"no \*\.parquet file"):
        list(ParquetReader(path=str(tmp_path)).rollouts())
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"]), tmp_path / "a")
    with pytest.raises(DataError, match="more than one column 'prompt'"):
        list(ParquetReader(path=str(tmp_path / "a")).rollouts())


def test_parquet_text_that_is_not_utf8_costs_its_row_alone(tmp_path):
    offsets, content = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")
    prompts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, content])
    pq.write_table(pa.table({"prompt": prompts, "completion": ["c"] * 3}), tmp_path / "a.parquet")
    records = list(ParquetReader(path=str(tmp_path / "a.parquet")).rollouts())
    assert [(record.line, record.error) for record in records] == [(1, None), (2, "not UTF-8"), (3, None)]


def test_numbers_that_a_float_column_holds_are_ids_and_samples(tmp_path):
    table = pa.table({"prompt": ["p"], "completion": ["c"], "correct": [True], "prompt_id": [7.0], "sample": [2.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    (row,) = validate(ParquetReader(path=str(tmp_path / "a.parquet")).rollouts()).rollouts.to_pylist()
    assert (row["prompt_id"], row["sample"]) == ("7", 2)


def test_a_json_key_with_two_values_is_refused(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        '{"prompt": "p", "completion": "c", "reward": 1, "reward": 0}',
        '{"prompt": "p", "completion": "c", "reward": 1, "reward": 1}',
        '{"prompt": "p", "completion": "c", "reward": 1, "x": {"y": true, "y": 1}}',
    )
    records = list(JsonlReader(path=path).rollouts())
    assert [record.error for record in records] == ["key 'reward' has two values", None, "key 'y' has two values"]


@pytest.mark.parametrize("reader", [JsonlReader, ParquetReader, Gsm8kReader, SolutionsReader])
def test_missing_files_are_named(tmp_path, reader):
    path = str(tmp_path / "none")
    with pytest.raises(DataError, match=f"no file {path}"):
        list(reader(path=path).rollouts())


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        list(JsonlReader(path=str(path)).rollouts())
    with pytest.raises(DataError, match="as Parquet"):
        list(ParquetReader(path=str(path)).rollouts())
    with pytest.raises(DataError, match="cannot open nosuchscheme://"):
        list(JsonlReader(path="nosuchscheme://bucket/a.jsonl").rollouts())


PLAIN_ROWS = [{"prompt": f"p{n}", "completion": "c", "correct": n > 0} for n in range(3)]


@pytest.mark.parametrize("how", [{}, {"indent": 2}, {"separators": (",", ":")}])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_one_json_list_is_read_as_its_entries(tmp_path, how, mark):
    path = tmp_path / "a.json"
    path.write_bytes(mark + json.dumps([*PLAIN_ROWS, 3, {"prompt": "p"}], **how).encode())
    records = list(JsonlReader(path=str(path)).rollouts())
    assert [(r.line, r.error) for r in records] == [
        (1, None), (2, None), (3, None), (4, "not a JSON object"), (5, "missing field 'completion'"),
    ]  # fmt: skip
    assert [r.values["correct"] for r in records[:3]] == [False, True, True]
    path.write_text('[{"prompt": "p", "prompt": "q"}, {"prompt": "p", "completion": "c", "correct": true}]')
    assert [r.error for r in JsonlReader(path=str(path)).rollouts()] == ["key 'prompt' has two values", None]


def test_a_list_in_a_line_of_its_own_costs_that_line_alone(tmp_path):
    for first in ("[1, 2]", "[1, 2", "[[{}]"):
        path = write_lines(tmp_path / "a.jsonl", first, *PLAIN_ROWS)
        assert [(r.line, r.error is None) for r in JsonlReader(path=path).rollouts()] == [
            (1, False), (2, True), (3, True), (4, True),
        ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("[]")
    assert list(JsonlReader(path=str(tmp_path / "a.jsonl")).rollouts()) == []


@pytest.mark.parametrize("end", ["", ",", ", ]", "}", ', {"prompt": ', "]\n{}", "\n{}"])
def test_a_list_that_breaks_off_is_refused_for_what_may_be_lost(tmp_path, end):
    path = tmp_path / "a.json"
    path.write_text(f"[{', '.join(map(json.dumps, PLAIN_ROWS))}{end}")
    with pytest.raises(DataError, match=r"a\.json: it begins as a JSON list, and what follows entry [23]"):
        list(JsonlReader(path=str(path)).rollouts())


def test_a_list_is_read_entry_by_entry_however_long_they_are(tmp_path):
    rows = [
        {"prompt": f"p{n}", "completion": 'é\\ " ]} ' * (1 + 40_000 * (n == 7)), "correct": True} for n in range(900)
    ]
    for how in ({}, {"indent": 3, "ensure_ascii": False}):
        (tmp_path / "a.json").write_text(json.dumps(rows, **how), encoding="utf-8")
        write_lines(tmp_path / "b.jsonl", *rows)
        listed, lines = (list(JsonlReader(path=str(tmp_path / name)).rollouts()) for name in ("a.json", "b.jsonl"))
        assert [(r.line, r.values["prompt"], r.values["completion"]) for r in listed] == [
            (r.line, r.values["prompt"], r.values["completion"]) for r in lines
        ]


def test_files_of_which_some_are_lists_have_another_key_than_before_lists_were_read(tmp_path):
    lines = write_lines(tmp_path / "a.jsonl", *PLAIN_ROWS)
    (tmp_path / "b.json").write_text(json.dumps(PLAIN_ROWS))
    listed = str(tmp_path / "b.json")
    assert JsonlReader(path=lines).fingerprint() == hash_paths(lines)
    assert JsonlReader(path=(lines, listed)).fingerprint() != hash_paths((lines, listed))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"{}", mtime=0), r"compressed by gzip; let its name end in \.gz"),
        (json.dumps(PLAIN_ROWS[0]).encode("utf-16"), "text in UTF-16; write it in UTF-8"),
        (b"PAR1" + bytes(9), "a Parquet file; take the reader 'parquet'"),
        (b"PK\x03\x04" + bytes(9), "an archive or a spreadsheet"),
    ],
    ids=["gzip", "UTF-16", "Parquet", "zip"],
)
@pytest.mark.parametrize("reader", [JsonlReader, CsvReader])
def test_files_of_something_else_say_what_they_are(tmp_path, content, said, reader):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.txt is {said}"):
        list(reader(path=str(path)).rollouts())


def test_a_tab_may_be_written_as_shells_hand_it_on():
    assert CsvReader(path="a.csv", delimiter=r"\t").delimiter == "\t"


def test_golds_of_csv_that_look_like_lists_are_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('question,response,answer\nq,a,"[0, 1]"\nq,b,[0]\nq,c,"[0, 0]"\n')
    assert [row.values["gold"] for row in CsvReader(path=str(path)).rollouts()] == ["[0, 1]", "[0]", "[0, 0]"]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_csv_of_another_delimiter_says_which_to_set(tmp_path, mark):
    path = tmp_path / "a.csv"
    path.write_text(f"question{mark}response{mark}correct\nq{mark}a, b{mark}1\n")
    with pytest.raises(DataError) as refused:
        CsvReader(path=str(path)).check()
    said = str(refused.value).partition("set delimiter: ")[2].rstrip(".")
    assert json.loads(said) == mark
    (row,) = CsvReader(path=str(path), delimiter=mark).rollouts()
    assert (row.values["completion"], row.values["correct"]) == ("a, b", True)


def test_what_cannot_be_loaded_says_its_own_cause(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    for name, files in {"none": {}, "torn": {"a.csv": 'a,b\n1,2\n"x,3\n'}, "apart": {"a.jsonl": '{"a": 1}\n',
                        "b.jsonl": '{"c": "x"}\n'}}.items():  # fmt: skip
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    for name, said in (("none", r"doesn't contain any data files\.$"), ("torn", r"EOF inside string.*'csv'"),
                       ("apart", r"column names don't match.*'jsonl'")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            list(DatasetsReader(name=str(tmp_path / name)).rollouts())


def test_datasets_folders(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "files").mkdir()
    write_lines(tmp_path / "files" / "train.jsonl", *ROWS)
    assert essentials(DatasetsReader(name=str(tmp_path / "files"), fields=FIELDS)) == EXPECTED

    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "saved")
    assert essentials(DatasetsReader(name=str(tmp_path / "saved"), fields=FIELDS)) == EXPECTED
    datasets.DatasetDict(test=saved).save_to_disk(tmp_path / "splits")
    assert essentials(DatasetsReader(name=str(tmp_path / "splits"), split="test", fields=FIELDS)) == EXPECTED

    column = pa.array([b"fine", b"\xeb\xff", b"good"]).view(pa.string())
    texts = pa.table({"prompt": column, "completion": ["a", "b", "c"]})
    datasets.Dataset(texts).save_to_disk(tmp_path / "torn")
    read = list(DatasetsReader(name=str(tmp_path / "torn")).rollouts())
    assert [row.error for row in read] == [None, "not UTF-8", None]

    for name, split in (("files", "validation"), ("splits", "validation")):
        with pytest.raises(DataError, match="split 'validation'"):
            list(DatasetsReader(name=str(tmp_path / name), split=split).rollouts())
    with pytest.raises(DataError, match="set split to one of test"):
        list(DatasetsReader(name=str(tmp_path / "splits")).rollouts())
    with pytest.raises(DataError, match="no folder"):
        list(DatasetsReader(name=str(tmp_path / "none")).rollouts())


GSM8K = [
    {"question": "1000 + 80?", "answer": "1000 + 80 = <<1000+80=1080>>1,080\n#### 1,080"},
    {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"},
]


def test_gsm8k_rollouts_are_correct_gold_solutions(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", *GSM8K, {"question": "q", "answer": "four"}, {"question": "q"})
    validated = validate(Gsm8kReader(path=path).rollouts(), max_set_aside=0.5)
    rows = validated.rollouts.to_pylist()
    assert [(r["prompt"], r["completion"], r["gold"]) for r in rows] == [
        ("1000 + 80?", GSM8K[0]["answer"], "1080"),
        ("2 + 2?", GSM8K[1]["answer"], "4"),
    ]
    assert all((r["correct"], r["reward"], r["source"], r["truncated"]) == (True, 1.0, "gold", False) for r in rows)
    assert validated.set_aside["reason"].to_pylist() == ["answer has no number after '####'", "missing field 'answer'"]


SOLUTIONS = {
    "question": "9 times 2?",
    "ground_truth": "9 * 2 = 18\nA: 18",
    "small": {"is_correct": False, "solution": "9 + 2 = 11\nA: 11"},
    "large": {"is_correct": True, "solution": "A: 9 times 2\nA: 18\n"},
    "endless": {"is_correct": False, "solution": "2 2 2 2 2"},
}


def test_solutions_become_one_rollout_a_model(tmp_path):
    path = write_lines(tmp_path / "part.jsonl", SOLUTIONS)
    rows = validate(SolutionsReader(path=path, template="Q: {prompt}").rollouts()).rollouts.to_pylist()
    assert [(r["source"], r["completion"], r["correct"], r["truncated"]) for r in rows] == [
        ("small", "9 + 2 = 11\n#### 11", False, False),
        ("large", "A: 9 times 2\n#### 18", True, False),
        ("endless", "2 2 2 2 2", False, True),
    ]
    assert {(r["prompt"], r["gold"]) for r in rows} == {("Q: 9 times 2?", "18")}
    assert [r["sample"] for r in rows] == [0, 1, 2]


def test_solutions_can_keep_their_published_text(tmp_path):
    path = write_lines(tmp_path / "part.jsonl", SOLUTIONS)
    completions = [r.values["completion"] for r in SolutionsReader(path=path, answer_marker="A:").rollouts()]
    assert completions == [SOLUTIONS[model]["solution"] for model in ("small", "large", "endless")]


def test_one_bad_solution_costs_only_itself(tmp_path):
    bad = {**SOLUTIONS, "small": {"solution": "A: 1"}, "large": {"is_correct": True}}
    lines = (bad, {**SOLUTIONS, "ground_truth": "?"}, {"question": "q", "ground_truth": "A: 1"}, {"question": "q"})
    validated = validate(
        SolutionsReader(path=write_lines(tmp_path / "part.jsonl", *lines)).rollouts(), max_set_aside=0.9
    )
    assert validated.rollouts["source"].to_pylist() == ["endless"]
    assert validated.set_aside["reason"].to_pylist() == [
        "is_correct is not true or false",
        "missing field 'solution'",
        "ground_truth has no number after 'A:'",
        "no model's solution",
        "missing field 'ground_truth'",
    ]


def test_rollouts_and_prompts_of_the_same_question_share_their_id(tmp_path):
    gold = write_lines(tmp_path / "test.jsonl", {"question": "9 times 2?", "answer": "#### 18"})
    part = write_lines(tmp_path / "part.jsonl", SOLUTIONS)
    (prompt,) = read_prompts(Gsm8kReader(path=gold, template="Q: {prompt}"))
    rollouts = validate(SolutionsReader(path=part, template="Q: {prompt}").rollouts()).rollouts
    assert rollouts["prompt_id"].unique().to_pylist() == [prompt.prompt_id]


def test_gsm8k_prompts(tmp_path):
    path = write_lines(tmp_path / "test.jsonl", *GSM8K)
    assert read_prompts(Gsm8kReader(path=path, template="Q: {prompt}\nA:")) == [
        Prompt(prompt_digest(f"Q: {row['question']}\nA:")[:8].hex(), f"Q: {row['question']}\nA:", gold, row["answer"])
        for row, gold in zip(GSM8K, ("1080", "4"), strict=True)
    ]
    assert len(read_prompts(Gsm8kReader(path=path, limit=1))) == 1


def test_prompts_from_fields(tmp_path):
    rows = [{"question": "a", "answer": 18, "id": "x"}, {"question": "b", "answer": r"\frac12", "id": "y"}]
    path = write_lines(tmp_path / "a.jsonl", *rows)
    fields = {"prompt": "question", "gold": "answer", "prompt_id": "id"}
    expected = [Prompt("x", "a", "18", None), Prompt("y", "b", r"\frac12", None)]
    assert read_prompts(JsonlReader(path=path, fields=fields)) == expected
    pq.write_table(pa.Table.from_pylist(rows[1:]), tmp_path / "a.parquet")
    assert read_prompts(ParquetReader(path=str(tmp_path / "a.parquet"), fields=fields)) == expected[1:]


def test_a_benchmark_is_read_whole_or_not_at_all(tmp_path):
    good, more = {"prompt": "a", "gold": "1"}, {"prompt": "b", "gold": "2"}
    path = write_lines(tmp_path / "a.jsonl", good, "{", {"prompt": "c"}, {"prompt": "", "gold": "1"}, good, more)
    with pytest.raises(DataError, match="prompts: 4 of 6 records") as raised:
        read_prompts(JsonlReader(path=path))
    assert "missing field 'gold'" in str(raised.value)
    assert "prompt occurs in an earlier record" in str(raised.value)
    prompts = read_prompts(JsonlReader(path=path), max_set_aside=0.7)
    assert [prompt.prompt for prompt in prompts] == ["a", "b"]


def test_settings_are_a_discriminated_union():
    reader = TypeAdapter(AnyReader).validate_python({"type": "gsm8k", "path": ["a.jsonl", "b.jsonl"]})
    assert reader == Gsm8kReader(path=("a.jsonl", "b.jsonl"))
    assert TypeAdapter(AnyReader).validate_json(reader.model_dump_json()) == reader
    for wrong in (
        {"type": "xml", "path": "a"},
        {"path": "a"},
        {"type": "jsonl"},
        {"type": "jsonl", "path": "a", "limit": 0},
        {"type": "jsonl", "path": "a", "sep": ","},
        {"type": "jsonl", "path": "a", "fields": {"promt": "question"}},
        {"type": "gsm8k", "path": "a", "fields": {}},
        {"type": "solutions", "path": "a", "answer_marker": "B:"},
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(AnyReader).validate_python(wrong)
    with pytest.raises(ValidationError):
        TypeAdapter(AnyPromptReader).validate_python({"type": "solutions", "path": "a"})
    assert set(get_args(get_args(AnyPromptReader)[0])) < set(get_args(get_args(AnyReader)[0]))
