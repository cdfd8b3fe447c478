import pickle

import pytest
from loss_cases import EVERY_LOSS, name
from pydantic import TypeAdapter, ValidationError

from raygeo.losses import LOSSES, AnyLoss, Loss
from raygeo.settings import content_key

ANY = TypeAdapter(AnyLoss)


def test_every_loss_is_found_by_its_type():
    assert list(LOSSES) == ["sft", "rft", "dft", "rift", "grpo", "dpo"]
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


@pytest.mark.parametrize("wrong", [{}, {"type": "kto"}, {"type": "sft", "beta": 0.1}, {"type": "dpo", "beta": "inf"}])
def test_refuses(wrong):
    with pytest.raises(ValidationError):
        ANY.validate_python(wrong)
