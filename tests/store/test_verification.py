"""Everything that is broken in a store is named, and a whole one is whole."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.store.contents import Contents
from raygeo.store.verification import broken
from raygeo.tables import to_arrow

ROWS = [{"stage": "s", "name": f"name {n}", "value": n} for n in range(50)]


@pytest.fixture
def filled(store):
    """A store with something of every kind, and its files by what they are."""
    store.write_unit("alone", {"counts": ROWS})
    store.write_units({key: {"counts": to_arrow("counts", ROWS)} for key in "ab"})
    store.publish("counts", ["a"])
    with store.making("students", "k") as folder:
        save_file({"w": torch.ones(9)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    with store.making("deltas", "of-an-earlier-version") as folder:
        save_file({"w": torch.ones(9)}, folder / "delta.safetensors")
    Path(store.path("deltas", "of-an-earlier-version", "_COMPLETE")).write_bytes(b"")
    added = store.scratch()
    (added / "part").write_text("x" * 10)
    store.add_to_folder("checkpoints", "k-2", added)
    store.complete_folder("checkpoints", "k-2")
    store.add_to_folder("checkpoints", "k-4", added)
    store.write_bytes(
        "journals/k/000000.safetensors", Path(store.folder("students", "k"), "model.safetensors").read_bytes()
    )
    store.write_bytes("report.json", b"{}")
    return store


def found(store):
    return {one.path: one.why for one in broken(Contents(store))}


def test_a_whole_store_is_whole(filled):
    assert found(filled) == {}
    done = CliRunner().invoke(app, ["store", "verify", filled.location])
    assert done.exit_code == 0
    assert "All is whole: 3 units, 3 folders, 1 tables" in done.output


def cut(file):
    file.write_bytes(file.read_bytes()[:-3])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("units/counts/alone.parquet", cut, ""),
        ("units/counts/alone.parquet", lambda file: flip_page(file), "crc"),
        ("tables/counts.parquet", cut, ""),
        ("students/k/model.safetensors", cut, "were written"),
        ("students/k/model.safetensors", flip, "SHA-256"),
        ("students/k/config.json", Path.unlink, "missing"),
        ("deltas/of-an-earlier-version/delta.safetensors", cut, "its header says"),
        ("checkpoints/k-2/part", cut, "were written"),
        ("journals/k/000000.safetensors", cut, "its header says"),
        ("report.json", cut, ""),
        ("students/k/_COMPLETE", cut, "damaged"),
    ],
)
def test_what_is_broken_is_named(filled, name, damage, said):
    damage(Path(filled.path(name)))
    done = CliRunner().invoke(app, ["store", "verify", filled.location])
    assert done.exit_code == 1
    [(path, why)] = found(filled).items()
    assert path in (name, "students/k")
    assert said in why.lower() or said in why
    assert path in done.output
    assert "1 broken of" in done.output


def flip_page(file):
    """Change a byte of the data of the last column, not of the footer."""
    column = pq.read_metadata(file).row_group(0).column(2)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2 + 10] ^= 1
    file.write_bytes(data)


def test_a_list_of_units_that_does_not_fit_its_rows_is_broken(filled):
    [file] = Path(filled.path("units", "counts")).glob("*.batch.parquet")
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({b"raygeo.units": json.dumps([["a", 7]]).encode()}), file)
    assert "it has 100 rows, and 7 by its list of units" in found(filled)[f"units/counts/{file.name}"]


def test_a_link_to_what_is_gone_is_broken(filled, tmp_path):
    (tmp_path / "weights").write_text("x")
    with filled.making("students", "linked") as folder:
        (folder / "weights").symlink_to(tmp_path / "weights")
    assert found(filled) == {}
    (tmp_path / "weights").unlink()
    assert "students/linked/weights" in found(filled)
