"""Each suite lets a good extension pass, and finds each way of breaking the contract by the test that is named for it.

The broken extensions are in ``broken_*.py``. They are run as their authors would: by pytest, in a process of its own.
"""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from support.postgres import PostgresServer

HERE = Path(__file__).parent
FILES = ("broken_backends.py", "broken_databases.py", "broken_gateways.py", "broken_others.py")
#: They wait for what a broken gateway never tells.
SLOW = ("broken_gateways.py",)
pytestmark = pytest.mark.xdist_group("suites-catch")


@dataclass
class Outcome:
    """What became of one class: what each failed test said, and how many passed."""

    failed: dict[str, str] = field(default_factory=dict)
    passed: int = 0


@cache
def outcomes(file: str) -> dict[str, Outcome]:
    """Run of each class the test that is to catch it, of a good one all; return what became of them."""
    tests = [f"{HERE / file}::{name}{'::' if test else ''}{test}" for name, test in caught_by(file).items()]
    report = Path(os.environ["BROKEN_REPORTS"]) / f"{file}.xml"
    flags = [
        "-q",
        "--noconftest",
        "--tb=short",
        "--import-mode=importlib",
        "-c",
        os.devnull,
        "--rootdir",
        str(HERE),
    ]
    without = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio", "-p", "no:timeout"]
    # Long messages are told whole.
    env = {**os.environ, "CI": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *flags,
            *without,
            "-W",
            "ignore",
            f"--junitxml={report}",
            *tests,
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env=env,
    )
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr
    found: dict[str, Outcome] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        outcome = found.setdefault(case.get("classname", "").rpartition(".")[2], Outcome())
        trouble = next((each for each in case if each.tag in ("failure", "error")), None)
        if trouble is not None:
            outcome.failed[case.get("name", "")] = f"{trouble.get('message')}\n{trouble.text}"
        elif not list(case):
            outcome.passed += 1
    return found


@pytest.fixture(autouse=True, scope="module")
def _places(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> None:
    os.environ["BROKEN_REPORTS"] = str(tmp_path_factory.mktemp("reports"))
    os.environ["BROKEN_DATABASE_URL"] = postgres_server.url(asyncio.run(postgres_server.create_database()))


def classes(file: str) -> list[str]:
    """Return the names of the test classes of a file, without importing it."""
    names = []
    for node in ast.parse((HERE / file).read_text()).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.append(node.targets[0].id)
    return [each for each in names if each.startswith("Test")]


@cache
def caught_by(file: str) -> dict[str, str]:
    spec = spec_from_file_location(file.removesuffix(".py"), HERE / file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return {each: getattr(module, each).caught_by for each in classes(file)}


def each_class() -> list[Any]:
    return [
        pytest.param(file, name, marks=[pytest.mark.slow] if file in SLOW else [])
        for file in FILES
        for name in classes(file)
    ]


@pytest.mark.parametrize(("file", "name"), each_class())
def test_it_is_caught_by_the_test_named_for_it(file: str, name: str) -> None:
    wanted, outcome = caught_by(file)[name], outcomes(file)[name]

    if not wanted:
        assert outcome.failed == {}
        assert outcome.passed > 10
        return
    assert wanted in outcome.failed, f"it passed; failed were {list(outcome.failed)}"
    said = outcome.failed[wanted]
    assert said.startswith(("AssertionError: ", "Failed: ", "failed on setup")) or ": " in said
    assert "RuntimeWarning" not in said


def test_no_test_of_a_suite_catches_nothing() -> None:
    """What no broken extension fails holds nothing."""
    from gpustack.testing import SUITES, GatewayTrafficSuite

    known = {each for other in FILES for each in caught_by(other).values()}
    suites = (*SUITES.values(), GatewayTrafficSuite)
    tests = {name for suite in suites for name in dir(suite) if name.startswith("test_")}

    assert tests - known == {"test_expose_is_about_the_real_devices_too"}
