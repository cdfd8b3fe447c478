"""Lines of a log name the study, and the run or task."""

import logging
from pathlib import Path

import pytest

from raygeo.errors import DataError
from raygeo.logs import about, detail, name_lines
from raygeo.pipeline.logged import logged

log = logging.getLogger("raygeo.models.fitting")


@pytest.fixture
def no_handlers(monkeypatch):
    monkeypatch.setattr(logging.getLogger("raygeo"), "handlers", [])


def test_a_line_names_what_it_is_about(no_handlers, capsys):
    name_lines()
    name_lines()
    with about("mine"):
        with about("paths", "sft-dpo"):
            log.warning("no memory for a batch of %d", 8)
        log.warning("an actor died")
    log.warning("done")
    log.info("nobody reads this")
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "WARNING mine: paths: sft-dpo: no memory for a batch of 8",
        "WARNING mine: an actor died",
        "WARNING done",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_that_cannot_be_written_hides_nothing(store):
    Path(store.path("logs")).mkdir()
    Path(store.path("logs", "study.log")).symlink_to("/dev/full")
    with pytest.raises(DataError, match="why it ended"), logged(store, "study"):
        raise DataError("why it ended")
    with logged(store, "study"):
        detail.info("a line")
