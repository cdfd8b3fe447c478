"""However records are divided into parts, the rollouts are the same."""

from random import Random

import pyarrow as pa
import pytest

from raygeo.data.grading import grader
from raygeo.data.incoming import record_parts
from raygeo.data.merging import Part, assemble, number, select, token_blocks, token_lengths, validate
from raygeo.data.scanning import Reading, scan
from raygeo.data.validation import Record
from raygeo.data.verdicts import grade
from raygeo.tables import SCHEMAS


def messy_records(count, seed):
    """Good rows among rows of every kind that is set aside, some for reasons that stand in other rows."""
    draw = Random(seed)
    for line in range(count):
        right = draw.randrange(9)
        row = {"prompt": f"p{right}", "gold": str(right), "completion": f"#### {right + draw.randrange(2)}"}
        change = [
            {}, {}, {}, {"gold": f"{right}.0"}, {"gold": "99"}, {"gold": "n/a"}, {"prompt_id": f"i{draw.randrange(9)}"},
            {"sample": draw.randrange(4)}, {"completion": None}, {"completion": "cut", "truncated": True},
            {"gold": None, "reward": draw.random() - 0.5}, {"correct": True, "gold": "n/a"}, {"logprobs": [-0.5, -1.0]},
            {"completion": "too long"},
        ][draw.randrange(14)]  # fmt: skip
        yield Record("messy", line, {**row, **change})


def unfit(prompt, completion):
    return "longer than the context" if completion == "too long" else None


def read(pairs):
    """Texts as a student reads them that knows letters."""
    return [Reading(unfit(p, c), [], len(p), [ord(letter) for letter in p + c] + [0]) for p, c in pairs]


def in_parts(records, rows, grading):
    """The steps of the rollouts stage, over parts of ``rows``: table, set aside, notes, and token ids."""
    laid = list(record_parts(records, rows))
    scans = [scan(part, read) for part in laid]
    parts = [Part(one.select, other.select) for one, other in zip(laid, scans, strict=True)]
    selected = select(parts, grading, 0.9)
    how = selected.grading.grading
    with grader(how) as judge:
        found = number(parts, selected, (grade(*pair, judge, how, str) for pair in zip(laid, scans, strict=True)), 0.9)
    table = pa.concat_tables(assemble(parts, found.rollouts))
    lengths = token_lengths(found.rollouts).tolist()
    ids = [i for block in token_blocks(parts, found.rollouts) for i in block.tolist()]
    return table, found.set_aside, found.notes, (lengths, ids)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_division_into_parts_changes_nothing(seed, rows):
    records = list(messy_records(150, seed))
    whole = validate(records, grading="auto", max_set_aside=0.9, unfit=unfit)
    table, set_aside, notes, (lengths, ids) = in_parts(records, rows, "auto")
    assert table.equals(whole.rollouts)
    assert set_aside.equals(whole.set_aside)
    assert notes == whole.notes
    assert len(set(set_aside["reason"].to_pylist())) > 4, "choose other seeds"
    expected = [
        [*map(ord, row["prompt"] + row["completion"]), *([] if row["truncated"] else [0])] for row in table.to_pylist()
    ]
    assert lengths == [len(sequence) for sequence in expected]
    assert ids == [i for sequence in expected for i in sequence]


def test_columns_hold_more_than_32_bits_can_count():
    table, set_aside, _, _ = in_parts(list(messy_records(20, 0)), 5, "exact")
    for found in (table, set_aside):
        for field in found.schema:
            assert not pa.types.is_string(field.type)
            assert not pa.types.is_list(field.type)
    assert table.schema == SCHEMAS["rollouts"]
