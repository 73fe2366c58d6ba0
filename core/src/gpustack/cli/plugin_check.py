"""Runs the contract suites of :mod:`gpustack.testing` against what an installed plugin brings.

In a process of its own, where pytest may do as it likes. What it finds there comes back through a file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpustack.cli.plugin_reporter import REPORT
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.kit.text import shorten

if TYPE_CHECKING:
    from gpustack.extensions import Catalogue

#: Seconds that the suites of one plugin may take.
_PATIENCE = 600.0
#: ``gpustack.testing`` stands above the command line, so it is named here and imported there only.
_TESTS = """\
from gpustack.extensions import load_catalogue
from gpustack.testing import SUITES

_catalogue = load_catalogue()
for _field, _name in {extensions!r}:
    _about = {{"extension": getattr(_catalogue, _field)[_name].cls}}
    if _field == "databases":
        _about["database_url"] = {database_url!r}
    globals()[f"Test_{{_field}}_{{_name}}"] = type(f"Test_{{_field}}_{{_name}}", (SUITES[_field],), _about)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One promise of one extension; ``why`` is the first line of why it does not hold."""

    extension: str
    promise: str
    ok: bool
    why: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return asdict(self)


def examined(name: str, database_url: str = "") -> list[Result]:
    """Return what holds of the plugin ``name``, what does not work at all first.

    What a database promises is mostly held in the empty one at ``database_url``, when there is one.

    Raises NotFound when it is not installed, and GPUStackError when it cannot be examined.
    """
    from gpustack.extensions import load_catalogue
    from gpustack.extensions.kinds import KINDS

    catalogue = load_catalogue()
    plugin = _plugin(catalogue, name)
    loading = [
        Result(extension=each.plugin, promise=f"{each.stage} works", ok=False, why=each.error)
        for each in catalogue.failures
        if each.plugin == plugin
    ]
    extensions = [
        (kind.field, registered.name)
        for kind in KINDS
        for registered in getattr(catalogue, kind.field).values()
        if registered.plugin == plugin
    ]
    if not extensions:
        return loading or [Result(extension=plugin, promise="it loads; it brings no extension", ok=True)]
    labels = {(kind.field, name): f"{kind.label} {name}" for kind in KINDS for _, name in extensions}
    return [*loading, *_run(extensions, labels, database_url)]


def _plugin(catalogue: Catalogue, name: str) -> str:
    """Return the plugin's name: it, its distribution, or something it brings may have been named."""
    from gpustack.cli.names import meant
    from gpustack.cli.plugin_environment import canonical

    known = catalogue.plugins.values()
    names = {each.name for each in known if each.name == name} or {
        each.name for each in known if canonical(each.distribution) == canonical(name)
    }
    if not names:
        raise NotFound(
            f"no plugin {shorten(name, 160)!r} is installed here{meant(name, [each.name for each in known])}; "
            "see `gpustack plugins`"
        )
    if len(names) > 1:
        raise GPUStackError(f"{name} brings several plugins: {', '.join(sorted(names))}; name one of these")
    (found,) = names
    if (blocked := catalogue.plugins[found]).state == "blocked":
        raise GPUStackError(f"plugin {found} is not loaded: {blocked.reason}")
    return found


def _run(
    extensions: list[tuple[str, str]], labels: dict[tuple[str, str], str], database_url: str
) -> list[Result]:
    if importlib.util.find_spec("pytest") is None:
        raise GPUStackError(
            "the contract suites run with pytest, which is not here; install it with "
            "`pip install 'gpustack-core[testing]'`"
        )
    with tempfile.TemporaryDirectory(prefix="gpustack-check-") as folder:
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        tests = Path(folder, "test_contract.py")
        # It may hold a password.
        tests.touch(mode=0o600)
        tests.write_text(_TESTS.format(extensions=extensions, database_url=database_url))
        report = Path(folder, "report.jsonl")
        said = _pytest(Path(folder), report)
        told = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    results = [
        Result(
            extension=next(
                (label for (field, name), label in labels.items() if each["test"] == f"Test_{field}_{name}"),
                "the suite",
            ),
            promise=each["promise"],
            ok=each["ok"],
            why=each["why"],
        )
        for each in told
    ]
    if not results:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise GPUStackError(f"pytest ran no contract: {last}; GPUSTACK_DEBUG=1 shows more")
    return results


def _pytest(folder: Path, report: Path) -> str:
    """Run it and return what it printed."""
    from gpustack.cli.entry import debugging

    # -P: nothing in the working directory is taken for a module.
    command = [
        *(sys.executable, "-P", "-m", "pytest", "-q", "-p", "gpustack.cli.plugin_reporter"),
        *("-p", "no:cacheprovider", "--import-mode=importlib"),
        *("-c", str(folder / "pytest.ini"), "--rootdir", str(folder), str(folder / "test_contract.py")),
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**kept, REPORT: str(report), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GPUStackError(f"the contract suites were not done after {_PATIENCE:.0f} s") from error
    said = done.stdout.decode(errors="replace")
    if debugging():
        sys.stderr.write(said)
    return said
