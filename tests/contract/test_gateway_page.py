"""The plugins that docs/write-a-gateway-plugin.md shows are held by their tests, as it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpustack.extensions.kinds import KINDS, defect
from gpustack.plugin import Gateway
from gpustack.testing import GatewayTrafficSuite
from gpustack.testing.suites.gateway_traffic import PARTS

PAGE = Path(__file__).parents[2] / "docs" / "write-a-gateway-plugin.md"
KIND = next(each for each in KINDS if each.base is Gateway)


def source() -> str:
    """Return the page's Python, as one module."""
    return "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))


def passed(folder: Path, *more: str) -> str:
    """Run the page's tests in a process of their own, as their author would; return what pytest says last."""
    file = folder / "test_acme.py"
    file.write_text(source())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [*command, "--rootdir", str(folder), str(file), *more],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_pages_classes_are_gateways() -> None:
    names: dict[str, Any] = {}
    exec(source(), names)  # it is ours
    assert names["register_gateways"]() == [names["AcmeGateway"]]
    for each in ("AcmeGateway", "TwoProcesses"):
        assert defect(KIND, names[each]) is None
    assert issubclass(names["TestAcmeTraffic"], GatewayTrafficSuite)
    assert set(names["TestAcmeTraffic"].lacks) <= set(PARTS)


def test_the_page_names_all_that_may_be_lacking() -> None:
    (sentence,) = re.findall(r"What may be lacking is (.*?)\.", PAGE.read_text(), re.DOTALL)
    assert re.findall(r"`([^`]+)`", sentence) == list(PARTS)


def test_they_keep_their_contract(tmp_path: Path) -> None:
    assert re.match(r"\d{2} passed", passed(tmp_path, "-k", "not Traffic"))


@pytest.mark.slow
def test_requests_go_through_processes_of_the_data_path(tmp_path: Path) -> None:
    assert re.match(r"\d{2} passed", passed(tmp_path, "-k", "TwoProcessesTraffic"))
