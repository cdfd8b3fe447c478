"""The student whose deltas the tests of weights look at."""

from pathlib import Path

import pytest
from tiny import tiny_qwen


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The folder of a ``tiny_qwen``."""
    folder = tmp_path_factory.mktemp("base")
    tiny_qwen().save_pretrained(folder)
    return folder
