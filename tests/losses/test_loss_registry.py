import pickle
from typing import Literal, get_args, get_origin

import pytest
from loss_cases import CASES, EVERY_LOSS
from pydantic import TypeAdapter, ValidationError

from raygeo.losses import DPO, IWSFT, RIFT
from raygeo.losses.registry import LOSSES, ORIGINS, AnyLoss, name_of, parse_loss, variants
from raygeo.settings import content_key

ANY = TypeAdapter(AnyLoss)
OF_DATA = ("type", "prompts", "rows")


def test_losses_stand_by_kind_and_not_by_name():
    assert next(iter(LOSSES)) == "sft"
    assert list(LOSSES).index("kto") < list(LOSSES).index("dpo") < list(LOSSES).index("cdpo")
    assert ORIGINS["sft"] == "raygeo"


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_settings_round_trip(loss):
    assert ANY.validate_json(loss.model_dump_json()) == loss == parse_loss(loss.model_dump())
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert hash(loss) == hash(loss.model_copy())


def test_settings_tell_content_keys_apart():
    assert len({content_key(loss) for loss in EVERY_LOSS}) == len(EVERY_LOSS)


def test_every_option_is_described():
    for loss in LOSSES.values():
        assert all(field.description for name, field in loss.model_fields.items() if name != "type")


def test_variants_are_named_by_what_they_change():
    assert list(variants(RIFT)) == [
        "rift",
        "rift-normalization=sequence",
        "rift-negative=sequence",
        "rift-negative=geometric",
        "rift-negative=paper",
    ]
    assert name_of(IWSFT(proposal="behaviour", bounds=(0.5, 3.0))) == "iw-sft-proposal=behaviour-bounds=0.5,3"
    assert variants(DPO) == {"dpo": DPO()}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_variants_have_every_choice_of_every_option(loss):
    choices = {
        (name, choice)
        for name, field in loss.model_fields.items()
        if name not in OF_DATA
        for choice in ((False, True) if field.annotation is bool else get_args(field.annotation))
        if field.annotation is bool or get_origin(field.annotation) is Literal
    }
    tested = {item for each in CASES if type(each) is loss for item in each.model_dump().items() if item in choices}
    assert tested == choices


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "discriminator 'type'"),
        ({"type": "rifd"}, r"'rifd' is not a loss \(did you mean 'rift'\?\); the types are sft, rft, dft"),
        ({"type": "unknown"}, "'unknown' is not a loss; the types are sft, rft, dft"),
        ({"type": ["sft", "rft"]}, "is not a loss"),
        ({"type": "sft", "beta": 0.1}, "Extra inputs"),
        ({"type": "dpo", "beta": "inf"}, "finite number"),
    ],
)
def test_refuses(wrong, said):
    with pytest.raises(ValidationError, match=said):
        parse_loss(wrong)
