"""Commands that need little import little: it decides how long they take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gpustack.cli.commands import COMMANDS, group

HEAVY = {"httpx", "pydantic", "rich", "litestar", "piccolo", "dynaconf", "pluggy", "asyncio", "psutil"}
_PROBE = """
import json, sys
from gpustack.cli import main
status = main(json.loads(sys.argv[1]))
sys.stderr.write("\\n" + json.dumps([status, sorted(sys.modules)]))
"""


def loaded_by(*args: str) -> set[str]:
    """Run a command in a process of its own; return the top-level modules it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps(args)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    status, modules = json.loads(done.stderr.rsplit("\n", 1)[1])
    assert status == 0
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("args", [["version"], ["--help"]], ids=" ".join)
def test_no_framework_is_loaded(args: list[str]) -> None:
    assert not loaded_by(*args) & HEAVY


def test_the_help_of_start_needs_what_plugins_declare_their_options_with_and_no_more() -> None:
    assert not loaded_by("start", "--help") & (HEAVY - {"pydantic", "pluggy", "asyncio", "psutil"})


@pytest.mark.parametrize("name", ["deploy", "ls", "chat", "stop", "keys"])
def test_help_needs_neither_the_http_library_nor_pydantic(name: str) -> None:
    assert not loaded_by(name, "--help") & {"httpx", "pydantic", "rich", "psutil", "litestar"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_of_a_command_what_it_says_itself(name: str) -> None:
    command = group.get_command(group.make_context("gpustack", [name], resilient_parsing=True), name)

    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name][1]
