"""Every loss trains as its file ``golden/<type>.json`` has it."""

import golden_curves
import pytest
from golden_curves import Golden, difference, main

from raygeo.losses import SFT
from raygeo.losses.registry import LOSSES


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_loss_trains_as_its_revision_does(loss_type):
    if found := difference(loss_type, Golden.kept(loss_type), Golden.now(loss_type)):
        pytest.fail(found)


def test_every_file_is_of_a_loss():
    assert {path.stem for path in golden_curves.GOLDEN.glob("*.json")} <= set(LOSSES)


@pytest.fixture
def changed(tmp_path, monkeypatch) -> Golden:
    """The curves of SFT kept with another number in one of them."""
    monkeypatch.setattr(golden_curves, "GOLDEN", tmp_path)
    main(["sft"])
    kept = Golden.kept("sft")
    kept.curves["sft"][3] *= 1.001
    kept.write("sft")
    return Golden.kept("sft")


@pytest.mark.slow
def test_other_numbers_ask_for_another_revision_before_they_are_kept(changed, monkeypatch):
    said = difference("sft", changed, Golden.now("sft"))
    assert said.startswith("sft trains otherwise than before")
    assert "raise the revision (SFT.revision" in said
    assert "python tests/losses/golden_curves.py sft" in said
    with pytest.raises(SystemExit, match="raise the revision"):
        main(["sft"])
    assert Golden.kept("sft") == changed
    monkeypatch.setattr(SFT, "revision", 2)
    assert "of the revisions [1, 1], it has [1, 2]" in difference("sft", changed, Golden.now("sft"))
    main(["sft"])
    assert difference("sft", Golden.kept("sft"), Golden.now("sft")) is None


def test_a_loss_without_a_file_asks_for_one():
    now = Golden([1, 1], {"sft": [1.0]})
    assert difference("sft", Golden([], {}), now).startswith(
        "no curves of sft are kept: write sft.json anew with python"
    )


def test_a_variant_more_or_less_asks_for_its_curve(monkeypatch):
    kept = Golden.kept("sft")
    monkeypatch.setattr(SFT, "variants", ())
    assert "sft has ['sft']: write sft.json anew with python" in difference("sft", kept, Golden.now("sft"))
