"""What cannot be written is told as such, and what else goes wrong meanwhile is not."""

import errno

import pytest

from raygeo.errors import ConfigError
from raygeo.outputs import writing


@pytest.mark.parametrize("place", ["out", "out/config.json", "."])
def test_what_cannot_be_written_is_named(tmp_path, place):
    said = OSError(errno.EACCES, "Permission denied", str(tmp_path / place))
    told = r"out cannot be written: Permission denied; name another place"
    with pytest.raises(ConfigError, match=told), writing(tmp_path / "out"):
        raise said


def test_what_cannot_be_read_meanwhile_is_not_what_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="delta"), writing(tmp_path / "out"):
        (tmp_path / "store" / "delta").read_bytes()
