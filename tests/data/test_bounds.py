"""What bounds a line, and texts of millions of characters."""

import json

import pytest

from raygeo.data.readers import csv as csv_reader
from raygeo.data.readers import files
from raygeo.data.readers.csv import CsvReader
from raygeo.data.readers.jsonl import JsonlReader
from raygeo.errors import DataError

ROW = {"prompt": "2 + 3?", "completion": "5", "correct": True}


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_line_that_is_too_long_is_set_aside_and_the_next_one_read(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(files, "LINE_BYTES", 1 << 20)
    long = json.dumps(ROW | {"completion": "5" * (3 << 20)})
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps(ROW), long, json.dumps(ROW)]) + ending)
    first, second, third = JsonlReader(path=str(tmp_path / "x.jsonl")).rollouts()
    assert (first.error, third.error) == (None, None)
    assert (second.error, second.line, third.line) == ("a line of more than 1 MiB", 2, 3)
    assert len(second.text) == 200


def test_a_line_of_just_so_many_bytes_is_read(tmp_path, monkeypatch):
    line = json.dumps(ROW)
    monkeypatch.setattr(files, "LINE_BYTES", len(line) + 1)
    (tmp_path / "x.jsonl").write_text(f"{line}\n{line}")
    assert [record.error for record in JsonlReader(path=str(tmp_path / "x.jsonl")).rollouts()] == [None, None]


def test_so_is_a_line_of_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_reader, "LINE_BYTES", 1000)
    (tmp_path / "x.csv").write_text("prompt,completion,correct\nq," + "5" * 2000 + ",true\n")
    with pytest.raises(DataError, match="a line has more than 1,000 characters"):
        list(CsvReader(path=str(tmp_path / "x.csv")).rollouts())


def test_pairs_of_long_texts_part_where_they_differ(tmp_path):
    common = "Question: " + "x" * 2_000_000 + " "
    row = {"chosen": common + "right", "rejected": common + "wrong"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    chosen, rejected = JsonlReader(path=str(tmp_path / "x.jsonl")).rollouts()
    assert chosen.values["prompt"] == common[:-1] == rejected.values["prompt"]
    assert (chosen.values["completion"].strip(), rejected.values["completion"].strip()) == ("right", "wrong")


def test_a_pipe_is_no_file_of_rollouts(tmp_path):
    import os

    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="a device or a pipe"):
        JsonlReader(path=str(tmp_path / "x.jsonl")).fingerprint()
