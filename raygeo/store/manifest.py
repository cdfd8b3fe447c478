"""What a complete folder holds, written into it when it is complete: names, sizes and SHA-256 of its files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COMPLETE = "_COMPLETE"


@dataclass(frozen=True)
class Manifest:
    """``sizes`` in bytes and ``digests`` (SHA-256) of files by their names in the folder, as far as they are known.

    ``version`` is the subfolder they lie in, "" for the folder itself. ``completion`` is a name drawn for a folder
    whose digests nobody knows, which tells it from another of the same sizes.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    completion: str = ""

    def dumped(self) -> bytes:
        """As the content of ``_COMPLETE``."""
        return json.dumps(vars(self), sort_keys=True).encode()

    @classmethod
    def loaded(cls, data: bytes) -> "Manifest":
        """From the content of ``_COMPLETE``, which earlier versions left empty.

        Raises:
            ValueError: it is something else.
        """
        if not data:
            return cls()
        found = json.loads(data)
        try:
            return cls(
                dict(found["sizes"]), dict(found["digests"]), str(found["version"]), str(found.get("completion", ""))
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{COMPLETE} lacks {error}") from error


def manifest_of(folder: Path, version: str = "") -> Manifest:
    """The manifest of all files in a local folder, links followed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / COMPLETE)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return Manifest(
        {name: path.stat().st_size for name, path in names.items()},
        {name: digest_of(path) for name, path in names.items()},
        version,
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
