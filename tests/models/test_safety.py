"""Models, adapters and stores of somebody else run no code, read nothing outside their folder, and share no key."""

import json
import os
import pickle
import shutil
from contextlib import suppress

import pytest
import torch
from delta_cases import low_rank, save_lora
from safetensors.torch import load_file, save_file
from tiny import save_tiny_student

from raygeo.data.probes import Probe
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DataError, DeltaError, RaygeoError, StoreError, StudentError
from raygeo.models.adapter_config import AdapterConfig
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import open_delta
from raygeo.models.loading import load_student, model_shape, read_config
from raygeo.models.soundness import check_student
from raygeo.pipeline.published import finished_run
from raygeo.pipeline.student import hash_folder
from raygeo.store import Store
from raygeo.tables import to_arrow

pytestmark = pytest.mark.cluster


class Planted:
    """Whoever unpickles it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.fixture
def student(tmp_path):
    return save_tiny_student(tmp_path / "student")


@pytest.fixture
def adapter(tmp_path):
    return save_lora(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": low_rank(32, 32, 4, seed=0)})


def test_the_plant_works(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path / "run")))
    assert (tmp_path / "run").is_dir()


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model.safetensors", "adapter_model.bin", "adapter_model.safetensors", "delta.safetensors",
        "tokenizer.json", "tokenizer.model", "vocab.json", "config.json", "training_args.bin", "state.pt",
        "raygeo_parameters.json", "raygeo_parameters.safetensors", "generation_config.json", "tokenizer_config.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("torch_format", [True, False], ids=["torch", "plain"])
def test_a_pickle_in_the_place_of_any_file_is_not_unpickled(student, adapter, tmp_path, name, torch_format):
    ran, where = tmp_path / "ran", tmp_path / "planted"
    if torch_format:
        torch.save({"x": Planted(ran)}, where)
    else:
        where.write_bytes(pickle.dumps(Planted(ran)))
    for folder, read in ((student, check_student), (student, open_delta), (adapter, open_delta), (student, Checkpoint)):
        shutil.copy(where, folder / name)
        for attempt in (read, hash_folder):
            with suppress(RaygeoError):
                attempt(folder)
    assert not ran.exists()


def test_weights_beside_pickled_ones_are_read_from_safetensors_alone(student, tmp_path):
    torch.save({"x": Planted(tmp_path / "ran")}, student / "pytorch_model.bin")
    key = hash_folder(student)
    check_student(student)
    (student / "pytorch_model.bin").unlink()
    assert hash_folder(student) == key
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named", ["w.bin", "../w.safetensors", "/w.safetensors", "a\0.safetensors", 3, None])
def test_an_index_names_safetensors_in_its_folder(student, named):
    tensors = load_file(student / "model.safetensors")
    (student / "model.safetensors").rename(student.parent / "w.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, named)}
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    for read in (load_student, Checkpoint, hash_folder):
        with pytest.raises(StudentError, match="only safetensors files in the model's own folder"):
            read(student)


@pytest.mark.parametrize("named", ["../w.safetensors", "w.bin", "/w.safetensors"])
def test_so_does_the_index_of_parameters(student, named):
    (student / "raygeo_parameters.json").write_text(json.dumps({"places": {"model.norm.weight": [named, "x"]}}))
    with pytest.raises(StudentError, match="only safetensors files in the model's own folder"):
        Checkpoint(student)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("value", ["somebody/kernel", {"": "somebody/kernel@main:f"}])
def test_a_kernel_that_a_configuration_names_is_refused(student, key, value):
    rewrite(student / "config.json", **{key: value})
    for read in (read_config, load_student, lambda folder: model_shape(read_config(folder))):
        with pytest.raises(StudentError, match="names a kernel to be fetched and run"):
            read(student)


def test_code_of_the_models_own_is_not_run(student, tmp_path):
    (student / "configuration_own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass C: pass\n")
    rewrite(student / "config.json", model_type="own", auto_map={"AutoConfig": "configuration_own.C"})
    rewrite(student / "tokenizer_config.json", auto_map={"AutoTokenizer": ["configuration_own.C", None]})
    for read in (read_config, load_student):
        with pytest.raises(StudentError):
            read(student)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_is_read_from_its_own_folder(student, tmp_path):
    other = save_tiny_student(tmp_path / "other")
    file = json.loads((other / "tokenizer.json").read_text())
    file["model"]["vocab"] = {word: len(file["model"]["vocab"]) - 1 - i for word, i in file["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(file))
    expected = load_student(student)[1]("2 + 3")["input_ids"]
    rewrite(student / "tokenizer_config.json", tokenizer_file=str(other / "tokenizer.json"))
    assert load_student(student)[1]("2 + 3")["input_ids"] == expected


@pytest.mark.parametrize(
    "changes", [{"transformers_weights": "w.safetensors"}, {"num_hidden_layers": 10**9}, {"num_labels": 10**6}]
)
def test_a_configuration_asks_for_what_its_weights_have(student, changes):
    rewrite(student / "config.json", **changes)
    with pytest.raises(StudentError, match=next(iter(changes))):
        load_student(student)


def test_sizes_are_checked_before_they_are_allocated(student):
    rewrite(student / "config.json", intermediate_size=10**12)
    with pytest.raises(StudentError, match="they do not belong together"):
        load_student(student)


def test_an_adapter_beside_a_model_is_refused(student, adapter):
    shutil.copy(adapter / "adapter_config.json", student)
    with pytest.raises(StudentError, match="an adapter beside a model"):
        load_student(student)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipes_devices_and_links_out_are_refused(student, tmp_path, name):
    kept = (student / name).read_bytes()
    for put in (lambda f: os.mkfifo(f), lambda f: f.symlink_to("/dev/zero"), lambda f: f.symlink_to("/etc/hostname")):
        (student / name).unlink()
        put(student / name)
        for read in (load_student, open_delta):
            with pytest.raises(StudentError, match=r"device or a pipe|link out of its folder|leads nowhere"):
                read(student)
    (student / name).unlink()
    (tmp_path / name).write_bytes(kept)
    (student / name).symlink_to(tmp_path / name)
    with pytest.raises(StudentError, match="link out of its folder"):
        hash_folder(student)


def test_the_hubs_cache_and_links_inside_are_read(student, tmp_path):
    hub = tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots" / "rev").mkdir(parents=True)
    for i, file in enumerate(sorted(student.iterdir())):
        shutil.copy(file, hub / "blobs" / str(i))
        (hub / "snapshots" / "rev" / file.name).symlink_to(f"../../blobs/{i}")
    assert hash_folder(hub / "snapshots" / "rev") == hash_folder(student)
    load_student(hub / "snapshots" / "rev")


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
     "model.safetensors"],
)  # fmt: skip
def test_a_models_key_is_that_of_all_that_decides_its_numbers(student, name):
    key = hash_folder(student)
    if name == "model.safetensors":
        tensors = load_file(student / name)
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, student / name)
    elif name == "chat_template.jinja":
        (student / name).write_text("{{ messages }}")
    else:
        rewrite(student / name, more=1)
    assert hash_folder(student) != key


def test_names_that_could_be_taken_for_digests_are_refused(student):
    (student / "a b.json").write_text("{}")
    with pytest.raises(StudentError, match="names of letters, digits"):
        hash_folder(student)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "(((.*)*)*)*y", "(q|q)*proj"])
def test_no_pattern_of_an_adapter_can_hang(adapter, pattern):
    rewrite(adapter / "adapter_config.json", rank_pattern={pattern: 4})
    modules = [f"model.layers.{i}.{'a' * 200}" for i in range(100)]
    assert len(AdapterConfig.read(adapter).ranks(modules)) == 100


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank_pattern": {"(?P<x": 4}}, "is no pattern that can be matched"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is .* where a mapping"),
        ({"use_rslora": "no"}, "use_rslora is 'no', where true or false"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out is 1"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
        ({"lora_alpha": 1e400}, "lora_alpha of .* is inf"),
    ],
)
def test_configurations_of_adapters_are_typed(adapter, changes, said):
    rewrite(adapter / "adapter_config.json", **changes)
    with pytest.raises(DeltaError, match=said):
        open_delta(adapter)


def test_keys_in_tables_stay_in_the_store(tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "deltas").mkdir()
    (tmp_path / "deltas" / "_COMPLETE").touch()
    row = {"run": "r", "key": "../../deltas", "status": "finished", "student": "../.."}
    store.publish_rows("runs", to_arrow("runs", [row]))
    with pytest.raises(StoreError, match="leads out of"):
        finished_run(store, "r", "run 'r'")
    for read in (store.folder, store.has_folder, store.stored, store.delete_folder):
        with pytest.raises(StoreError, match="leads out of"):
            read("deltas", "../../deltas")
    assert (tmp_path / "deltas" / "_COMPLETE").exists()


def test_arrays_of_a_store_hold_no_pickles(tmp_path):
    import numpy as np

    planted = np.array([Planted(tmp_path / "ran")], dtype=object)
    for name in ("ids", "offsets", "prompt_lengths"):
        np.save(tmp_path / f"{name}.npy", planted, allow_pickle=True)
    with pytest.raises((ValueError, DataError)):
        RolloutTokens.open(tmp_path)
    np.savez(tmp_path / "p.npz", name=planted)
    with pytest.raises(RaygeoError):
        Probe.load(tmp_path / "p.npz")
    assert not (tmp_path / "ran").exists()
