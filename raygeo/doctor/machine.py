"""What one machine says of itself."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import raygeo
from raygeo.versions import PACKAGES

MISSING = "missing"


@dataclass(frozen=True)
class Facts:
    """What raygeo runs with on a machine: versions by package, Python's among them; ``code`` is a digest of raygeo's
    own modules, ``unseen`` those of the folders asked for that are not there, ``trouble`` why DeepSpeed cannot be
    imported.
    """

    versions: Mapping[str, str]
    code: str
    unseen: tuple[str, ...]
    trouble: str


def describe(folders: Sequence[str] = ()) -> Facts:
    """The facts of this machine."""
    versions = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    unseen = tuple(folder for folder in folders if not os.path.isdir(folder))
    return Facts(versions, _digest(), unseen, _deepspeed_trouble())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return MISSING


def _digest() -> str:
    """The first digits of a digest of raygeo's modules, which may differ where its version does not."""
    root, digest = Path(raygeo.__file__).parent, sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _deepspeed_trouble() -> str:
    from raygeo.training.engine import import_deepspeed

    try:
        import_deepspeed()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def use_gpus(count: int) -> tuple[tuple[str, ...], str]:
    """Multiply small matrices on each of ``count`` GPUs: their names, and what is wrong with them, "" if nothing is."""
    found = torch.cuda.device_count()
    names = tuple(torch.cuda.get_device_name(index) for index in range(found))
    if found < count:
        return names, f"GPUs that Ray counts there: {count}; that torch {torch.__version__} sees: {found}"
    for index in range(count):
        try:
            square = torch.full((64, 64), 2.0, device=f"cuda:{index}")
            if float((square @ square).sum()) != 64**3 * 4:
                return names, f"GPU {index} ({names[index]}) multiplies matrices wrongly"
        except Exception as error:  # torch without CUDA raises AssertionError
            return names, f"GPU {index} ({names[index]}) cannot be used: {error}"
    return names, ""
