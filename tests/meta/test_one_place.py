"""The environment is read for settings in one place, and generated pages are as the code is."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

from gpustack.extensions.kinds import KINDS, SETTINGS_HOOK
from gpustack.plugin import hookspecs

ROOT = Path(__file__).parents[2]
#: Modules that look at the environment for something that is no setting of ours, and what that is.
OTHER_REASONS = {
    "cli/entry.py": "GPUSTACK_DEBUG shows tracebacks of the command line itself",
    "cli/output.py": "NO_COLOR and TERM",
    "kit/paths.py": "where the system has people's data",
    "kit/terminal.py": "TERM",
    "kit/trust.py": "authorities, by the variables that all programs share",
    "kit/init.py": "handed on to the program that is run",
    "app/start.py": "proxies, set for all that is run",
    "app/supervisor.py": "proxies, set for all that is run",
    "db/embedded/child.py": "handed on to the database",
    "worker/environment.py": "handed on to engines",
    "worker/runners/daemon.py": "DOCKER_HOST, by which all programs find the container engine",
    "worker/artifacts/hub/files.py": "handed on to the hub's library",
    "worker/artifacts/hub/library.py": "handed on to the hub's library",
    "worker/artifacts/installer.py": "handed on to pipx",
    "settings/sources.py": "the one place",
    "cli/plugin_check.py": "handed on to pytest",
    "cli/plugin_environment.py": "handed on to pip",
    "cli/plugin_reporter.py": "where its answer goes",
    "testing/server.py": "handed on to the server that a test starts",
}


def _reads(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "environb")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_nothing_else_reads_the_environment() -> None:
    core = ROOT / "core/src/gpustack"
    found = {str(path.relative_to(core)) for path in core.rglob("*.py") if _reads(path)}
    assert found == set(OTHER_REASONS)
    plugins = [
        path
        for folder in (
            "gpustack_backends",
            "gpustack_auth",
            "gpustack_gateway",
            "plugins/gpustack-gpu-nvidia",
            "plugins/gpustack-system",
        )
        for path in (ROOT / folder / "src").rglob("*.py")
    ]
    assert plugins
    assert [path for path in plugins if _reads(path)] == []


def test_the_hooks_are_those_that_are_collected() -> None:
    named = {
        name
        for name, each in vars(hookspecs).items()
        if inspect.isfunction(each) and hasattr(each, "gpustack_spec")
    }
    assert named == {kind.hook for kind in KINDS} | {SETTINGS_HOOK}
    page = (ROOT / "docs/reference/plugins.md").read_text()
    assert set(re.findall(r"^### (register_\w+)$", page, re.MULTILINE)) == named


def test_the_generated_pages_are_as_the_code_is() -> None:
    code = "import make_docs; [print(path) for path, text in make_docs.pages().items() if path.read_text() != text]"
    stale = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    assert stale.stdout == "", "run `make docs`"
