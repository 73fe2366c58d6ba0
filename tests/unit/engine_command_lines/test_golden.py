"""Every situation has its command line in every version, written down to be read and compared.

After a change that is meant: ``GPUSTACK_WRITE_GOLDEN=1 python -m pytest tests/unit/engine_command_lines``, and read
what differs. ``make test-engines`` holds the flags against the parsers of those versions.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.engine_lines import CASES, shown

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", CASES)
def test_command_lines_are_as_they_are_written_down(name: str) -> None:
    path, now = HERE / f"{name}.txt", shown(name)
    if os.environ.get("GPUSTACK_WRITE_GOLDEN"):
        path.write_text(now)
    assert path.read_text() == now
