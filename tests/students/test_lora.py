import pytest
import torch
from student_cases import tiny_qwen

from raygeo.errors import StudentError
from raygeo.students.delta import open_delta
from raygeo.students.lora import LoraSettings, adapter_fingerprint, attach_lora


def tiny(dtype=torch.float32):
    return tiny_qwen(20).to(dtype)


def factors(model, side):
    return {name: p for name, p in model.named_parameters() if f".lora_{side}." in name}


def test_equal_seeds_give_equal_adapters_whatever_the_global_generator_is_at():
    first = attach_lora(tiny(), LoraSettings(), init_seed=3)
    base = tiny()
    torch.manual_seed(99)
    second = attach_lora(base, LoraSettings(), init_seed=3)
    for name, a in factors(first, "A").items():
        assert torch.equal(a, second.get_parameter(name)), name
    assert adapter_fingerprint(first) == adapter_fingerprint(second)
    assert adapter_fingerprint(first) != adapter_fingerprint(attach_lora(tiny(), LoraSettings(), init_seed=4))


def test_the_global_generator_is_left_alone():
    base = tiny()
    before = torch.get_rng_state()
    attach_lora(base, LoraSettings(), init_seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_the_fingerprint_ignores_b_and_sees_every_a():
    model = attach_lora(tiny(), LoraSettings(), init_seed=0)
    start = adapter_fingerprint(model)
    with torch.no_grad():
        for b in factors(model, "B").values():
            b.fill_(1.0)
    assert adapter_fingerprint(model) == start
    with torch.no_grad():
        list(factors(model, "A").values())[-1].view(-1)[-1] += 1e-3
    assert adapter_fingerprint(model) != start


def test_adapters_start_as_the_base_in_fp32_and_only_they_train():
    base = tiny(torch.bfloat16)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = base(ids).logits
    model = attach_lora(base, LoraSettings(r=4), init_seed=0).eval()
    assert all(p.dtype == torch.float32 and p.shape[0] == 4 for p in factors(model, "A").values())
    assert not any(b.any() for b in factors(model, "B").values())
    for name, a in factors(model, "A").items():
        bound = a.shape[1] ** -0.5
        assert a.abs().max() <= bound, name
        assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.25), name
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(factors(model, "A")) | set(factors(model, "B"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_the_saved_adapter_is_read_back_with_its_scale(tmp_path, rslora, scale):
    model = attach_lora(tiny(), LoraSettings(r=4, alpha=6, rslora=rslora), init_seed=0)
    model.save_pretrained(tmp_path)
    delta = open_delta(tmp_path)
    assert len(delta) == 8
    assert {entry.scale for entry in delta.values()} == {scale}


@pytest.mark.parametrize(("targets", "modules"), [(("up_proj",), 2), ("all-linear", 14)])
def test_targets_choose_the_modules(targets, modules):
    assert len(factors(attach_lora(tiny(), LoraSettings(targets=targets), init_seed=0), "A")) == modules


def test_a_target_that_names_nothing_is_refused_even_beside_good_ones():
    with pytest.raises(StudentError, match=r"'qproj' names no linear module.*q_proj"):
        attach_lora(tiny(), LoraSettings(targets=("v_proj", "qproj")), init_seed=0)
