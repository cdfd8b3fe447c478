"""A checkpoint that somebody else has put into a store runs no code, and what a run's own holds comes back."""

import os
import pickle
import socket

import pytest
import torch
from process_cases import run_in_group

from raygeo.errors import StoreError
from raygeo.store import Store
from raygeo.training.checkpoints import KIND, Checkpoints, read_state
from raygeo.training.engine import deepspeed_config, import_deepspeed
from raygeo.training.settings import TrainingSettings

pytestmark = pytest.mark.cluster


class Planted:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def engine_of(settings):
    """A layer under DeepSpeed, after a step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = deepspeed_config(settings, 1)
    engine, *_ = import_deepspeed().initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(torch.ones(settings.micro_batch_size, 8)).sum())
    engine.step()
    return engine


def resumed_from_plants(rank, world, port, location, ran):
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    import_deepspeed().init_distributed("gloo", verbose=False)
    store = Store(location)
    engine = engine_of(TrainingSettings(steps=2, zero_stage=1))
    checkpoints = Checkpoints(store, "key")
    checkpoints.save(engine, 1, {"state": {"step": 1}, "seconds": 1.0})
    assert checkpoints.resume(engine) == {"state": {"step": 1}, "seconds": 1.0}
    folder = store.folder(KIND, "key-00000001")
    for file in sorted(os.listdir(folder)):
        if not file.endswith(".pt"):
            continue
        path = os.path.join(folder, file)
        with open(path, "rb") as stream:
            kept = stream.read()
        for held in ({"module": Planted(ran)}, Planted(ran)):
            for save in (torch.save, plainly):
                save(held, path)
                with pytest.raises(StoreError, match="is no checkpoint of a run"):
                    checkpoints.resume(engine)
        with open(path, "wb") as stream:
            stream.write(kept)
    assert not os.path.exists(ran)


def plainly(held, path):
    with open(path, "wb") as stream:
        pickle.dump(held, stream)


def test_a_planted_checkpoint_is_refused_and_runs_nothing(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run_in_group(resumed_from_plants, 1, port, str(tmp_path / "store"), str(tmp_path / "ran"))


def test_the_plant_works(tmp_path):
    torch.save(Planted(str(tmp_path / "ran")), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"x" * 100])
def test_a_damaged_one_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(StoreError, match=r"x\.pt is no checkpoint of a run, or a damaged one"):
        read_state(str(tmp_path / "x.pt"))
