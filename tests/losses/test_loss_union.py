import pickle
from importlib import import_module
from pkgutil import iter_modules
from typing import get_args

import pytest
from loss_cases import EVERY_LOSS, name
from pydantic import TypeAdapter, ValidationError

import raygeo.losses
from raygeo.losses import LOSSES, AnyLoss, Loss
from raygeo.settings import content_key

ANY = TypeAdapter(AnyLoss)


def test_the_union_holds_every_loss_once():
    modules = [import_module(f"raygeo.losses.{module.name}") for module in iter_modules(raygeo.losses.__path__)]
    members = (member for module in modules for member in vars(module).values() if isinstance(member, type))
    defined = {member for member in members if issubclass(member, Loss) and "type" in member.model_fields}
    assert set(LOSSES.values()) == defined
    assert len(LOSSES) == len(get_args(get_args(AnyLoss)[0]))


def test_every_loss_is_found_by_its_type():
    for key, loss in LOSSES.items():
        parsed = ANY.validate_python({"type": key})
        assert type(parsed) is loss
        assert isinstance(parsed, Loss)
        assert loss.title
        assert loss.paper
        assert loss.formula


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name)
def test_settings_round_trip(loss):
    assert ANY.validate_json(loss.model_dump_json()) == loss
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert hash(loss) == hash(loss.model_copy())


def test_settings_tell_content_keys_apart():
    assert len({content_key(loss) for loss in EVERY_LOSS}) == len(EVERY_LOSS)


def test_every_option_is_described():
    for loss in LOSSES.values():
        assert all(field.description for field in loss.model_fields.values())


@pytest.mark.parametrize(
    "wrong", [{}, {"type": "unknown"}, {"type": "sft", "beta": 0.1}, {"type": "dpo", "beta": "inf"}]
)
def test_refuses(wrong):
    with pytest.raises(ValidationError):
        ANY.validate_python(wrong)
