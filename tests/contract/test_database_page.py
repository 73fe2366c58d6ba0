"""The plugin that docs/write-a-database-plugin.md begins is loaded, and held by the suite as it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gpustack.extensions.kinds import KINDS, defect
from gpustack.plugin import Database
from gpustack.testing import DatabaseSuite

PAGE = Path(__file__).parents[2] / "docs" / "write-a-database-plugin.md"


def test_the_pages_blocks_are_a_plugin_and_its_test() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)  # it is ours
    kind = next(each for each in KINDS if each.base is Database)
    assert names["register_databases"]() == [names["AcmeDatabase"]]
    assert defect(kind, names["AcmeDatabase"]) is None
    assert issubclass(names["TestAcmeDatabase"], DatabaseSuite)
