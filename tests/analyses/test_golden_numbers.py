"""Every analysis computes what its file ``golden/<analysis>.json`` has."""

from dataclasses import replace

import golden_numbers
import pytest
from golden_numbers import Golden, difference, main

from raygeo.analyses.norms.workload import Norms
from raygeo.analyses.registry import analyses

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("name", analyses())
def test_an_analysis_computes_as_its_revision_does(name):
    if found := difference(name, Golden.kept(name), Golden.now(name)):
        pytest.fail(found)


def test_every_file_is_of_an_analysis():
    assert {path.stem for path in golden_numbers.GOLDEN.glob("*.json")} == set(analyses())


def test_other_numbers_ask_for_another_revision_before_they_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(golden_numbers, "GOLDEN", tmp_path)
    main(["norms"])
    kept = Golden.kept("norms")
    kept.numbers["deltas"]["norm"][1] *= 1.01
    kept.write("norms")
    said = difference("norms", Golden.kept("norms"), Golden.now("norms"))
    assert "deltas.norm is not as before" in said
    assert "raise the revision" in said
    with pytest.raises(SystemExit, match="raise the revision"):
        main(["norms"])
    monkeypatch.setattr(Norms, "revision", 2)
    assert "it has {'norms': 2}" in difference("norms", kept, Golden.now("norms"))
    main(["norms"])
    assert difference("norms", Golden.kept("norms"), Golden.now("norms")) is None


def test_a_column_that_is_gone_is_told():
    now = Golden({"w": 1}, {"t": {}})
    assert "t.x are gone" in difference("norms", replace(now, numbers={"t": {"x": [1, 2.0, 2.0]}}), now)
