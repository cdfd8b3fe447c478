"""Data sets of the ``datasets`` library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from raygeo.data.readers.arrow import rows_of
from raygeo.data.readers.base import MappedReader
from raygeo.data.validation import Record
from raygeo.errors import DataError

_ROWS = 256
"""Rows held at once."""


class DatasetsReader(MappedReader):
    """A Hugging Face data set: a local folder, or a name on the hub (the only reader that may use the network)."""

    type: Literal["datasets"] = "datasets"
    name: str
    """A folder of data files, a folder made by ``save_to_disk``, or a hub name such as ``openai/gsm8k``."""
    subset: str | None = None
    """The data set's configuration, ``main`` for ``openai/gsm8k``."""
    split: str = "train"
    revision: str | None = None
    """Commit or tag on the hub; give one to be reproducible."""

    def described(self) -> str:
        """As ``MappedReader.described``, with the split that is read."""
        kind, _, rest = super().described().partition(",")
        return f"{kind}, split {self.split!r},{rest}"

    def fingerprint(self) -> str:
        """The fingerprint that ``datasets`` keeps of the split."""
        return str(self._load()._fingerprint)

    def _raw(self) -> Iterator[Record]:
        dataset = self._load()
        dataset = dataset.select_columns([column for column in dataset.column_names if self.wants(column)])
        tables = dataset.with_format("arrow").iter(_ROWS)
        for line, found in enumerate((row for table in tables for row in rows_of(table)), 1):
            yield Record(self.name, line, **found)

    def _load(self) -> Any:
        import datasets

        folder = Path(self.name).expanduser()
        if self.name.startswith(("/", ".", "~")) and not folder.is_dir():
            raise DataError(f"there is no folder {self.name}; for a single file use the reader 'jsonl' or 'parquet'")
        try:
            if (folder / "dataset_dict.json").exists():
                splits = datasets.load_from_disk(str(folder))
                if self.split not in splits:
                    known = ", ".join(splits)
                    raise DataError(
                        f"the data set {self.name!r} has no split {self.split!r}; set split to one of {known}."
                    )
                return splits[self.split]
            if (folder / "state.json").exists():
                return datasets.load_from_disk(str(folder))
            name = str(folder) if folder.is_dir() else self.name
            return datasets.load_dataset(name, self.subset, split=self.split, revision=self.revision)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            cause = f" ({' '.join(str(error.__cause__).split())})" if error.__cause__ is not None else ""
            advice = (
                " Give the files to the reader of their kind ('jsonl', 'csv' or 'parquet'), which reads each by its "
                "own columns and sets aside what cannot be read."
                if isinstance(error, datasets.exceptions.DatasetGenerationError)
                else " Where there is no network, download it and give the folder."
                if isinstance(error, ConnectionError)
                else ""
            )
            why = f"{str(error).rstrip('.')}{cause}.{advice}"
            raise DataError(f"cannot load split {self.split!r} of the data set {self.name!r}: {why}") from error
