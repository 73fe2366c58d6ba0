"""`gpustack plugins check` and `test`: the contract suites, run against what is installed."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.cli import plugin_environment, plugin_new
from gpustack.cli.plugin_environment import Installer
from support.installed import installed_plugin, search_path

Cli = Any


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose distributions are installed, for this process and those that it starts."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", search_path(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("checked_")]:
        del sys.modules[name]


def _web(folder: Path, name: str, path: str, more: str = "") -> None:
    """Install a plugin with a web app ``acme``, whose suite is the quickest, at ``path``, and with ``more`` in it."""
    files = plugin_new.rendered("web", plugin_new.values_of("web", "acme"))
    module = files["src/gpustack_acme/__init__.py"]
    installed_plugin(folder, name, module.replace('path = "/acme"\n', f'path = "{path}"\n\n{more}'))
    (folder / "pages").mkdir()
    (folder / "pages/index.html").write_text("hello")


def test_a_plugin_that_keeps_its_promises(cli: Cli, beside: Path) -> None:
    _web(beside, "good", "/acme")
    ended = cli("plugins", "check", "checked-good")
    assert ended.status == 0, ended.out + ended.err
    lines = ended.out.splitlines()
    assert all(line.startswith("ok     web app acme: ") for line in lines)
    assert "ok     web app acme: its files are there" in lines
    assert ended.err == "Everything holds.\n"


def test_one_that_does_not(cli: Cli, beside: Path) -> None:
    _web(beside, "liar", "/v2/acme")
    ended = cli("plugins", "check", "liar")
    assert ended.status == 1
    assert (
        "fails  web app acme: its path is not the apis\n       path '/v2/acme' is one of the API's"
        in ended.out
    )
    assert "ok     web app acme: its files are there" in ended.out
    assert re.fullmatch(r"(\d+) of \d+ hold\.\n", ended.err)


def test_json_tells_the_same(cli: Cli, beside: Path) -> None:
    _web(beside, "liar", "/v2/acme")
    results = json.loads(cli("plugins", "check", "liar", "--json").out)
    assert [each["promise"] for each in results if not each["ok"]] == ["its path is not the apis"]
    assert all(bool(each["why"]) != each["ok"] for each in results)


def test_one_that_does_not_load(cli: Cli, beside: Path) -> None:
    installed_plugin(beside, "broken", "import nowhere_at_all")
    ended = cli("plugins", "check", "broken")
    assert ended.status == 1
    assert (
        "fails  broken: import works\n       ModuleNotFoundError: No module named 'nowhere_at_all'"
        in ended.out
    )


def test_one_that_is_not_there(cli: Cli) -> None:
    ended = cli("plugins", "check", "backend")
    assert ended.status == 1
    assert "did you mean backends?" in ended.err


def test_without_pytest_it_says_what_to_install(
    cli: Cli, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpustack.cli import plugin_check

    _web(beside, "good", "/acme")
    monkeypatch.setattr(plugin_check.importlib.util, "find_spec", lambda _name: None)
    by = Installer(name="uv", command=("/a place/uv", "pip"), options=("--python", "/env/python"))
    monkeypatch.setattr(plugin_environment, "installer", lambda: by)
    for words in (("check", "good"), ("test",)):
        ended = cli("plugins", *words)
        assert ended.status == 1
        assert "`'/a place/uv' pip install --python /env/python 'pytest>=" in ended.err


def test_the_tests_of_a_plugin_run_in_this_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []

    def become(program: str, words: list[str]) -> None:
        became.extend((program, words))

    monkeypatch.setattr(os, "execv", become)
    assert cli("plugins", "test", "-q", "-k", "x", "--", "tests").status == 0
    assert became == [
        sys.executable,
        [sys.executable, "-m", "pytest", "-q", "-k", "x", "tests"],
    ]


ENDINGS = {
    "os._exit(0)": "the process exited with status 0; the rest was not tried",
    "raise KeyboardInterrupt": "it stopped the run: KeyboardInterrupt; the rest was not tried",
    "pytest.exit('ha', 0)": "it stopped the run: _pytest.outcomes.Exit: ha; the rest was not tried",
    "time.sleep(60)": "it was not done after 120 s; the rest was not tried",
}


@pytest.mark.parametrize("does", ENDINGS)
def test_a_suite_that_does_not_reach_its_end_fails(
    cli: Cli, beside: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:

    _web(
        beside,
        "ender",
        "/acme",
        f"    async def __aenter__(self):\n        import os, pytest, time\n        {does}\n",
    )
    if "sleep" in does:
        _pass_time(monkeypatch, "it can be entered and left again and again")
    ended = cli("plugins", "check", "ender")
    assert ended.status == 1
    promise = "web app acme: it can be entered and left again and again"
    assert ended.out.endswith(f"fails  {promise}\n       {ENDINGS[does]}\n")
    assert "ok     web app acme: making it touches nothing" in ended.out
    assert ended.err.startswith(f"still at it after 50 s: {promise}\n") == ("sleep" in does)


def _pass_time(monkeypatch: pytest.MonkeyPatch, promise: str) -> None:
    """Let each look at what is tried be 50 s after the one before, while it is this."""
    from gpustack.cli.plugin_check import _Examination

    too_long = _Examination._too_long

    def later(self: _Examination) -> bool:
        if self._now[1] == promise:
            self._since -= 50
        return too_long(self)

    monkeypatch.setattr(_Examination, "_too_long", later)


def test_one_that_ends_the_process_when_it_is_loaded(cli: Cli, beside: Path) -> None:
    installed_plugin(beside, "ender", "import os; os._exit(0)")
    assert "fails  ender: it can be loaded\n" in cli("plugins", "check", "ender").out
    ended = cli("plugins", "check", "system")
    assert (ended.status, ended.out.splitlines()[0]) == (
        1,
        "fails  the other plugins: they can be loaded beside it",
    )


NOTHING = (
    "from gpustack.plugin import hookimpl\n\n@hookimpl\ndef register_{what}():\n    return [{classes}]\n"
)


def test_one_that_brings_nothing_fails(cli: Cli, beside: Path) -> None:
    installed_plugin(beside, "nothing", NOTHING.format(what="web_apps", classes=""))
    ended = cli("plugins", "check", "nothing")
    assert ended.status == 1
    assert ended.out.startswith("fails  nothing: it brings something\n       it loads and brings nothing: ")


def test_one_that_brings_options_alone_is_as_good(cli: Cli, beside: Path) -> None:
    options = "from pydantic import BaseModel\n\nclass Options(BaseModel):\n    checked_pace: int = 1\n\n"
    installed_plugin(beside, "options", options + NOTHING.format(what="settings", classes="Options"))
    ended = cli("plugins", "check", "options")
    assert (ended.status, ended.out) == (0, "ok     options: it brings something\n")


# Gateways ------------------------------------------------------------------------------------------------


def _gateway(folder: Path) -> None:
    """Install the gateway of the template as plugin ``proxy``: GPUStack runs nothing for it."""
    files = plugin_new.rendered("gateway", plugin_new.values_of("gateway", "acme"))
    installed_plugin(folder, "proxy", files["src/gpustack_acme/__init__.py"])


@pytest.mark.parametrize(
    ("plugin", "always", "named"),
    [
        ("gateway", False, {"Test_gateways_embedded", "Test_traffic_embedded"}),
        ("proxy", False, {"Test_gateways_acme"}),
        ("proxy", True, {"Test_gateways_acme", "Test_traffic_acme"}),
    ],
)
def test_a_gateway_is_run_where_that_is_in_nobodys_way(
    beside: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, always: bool, named: set[str]
) -> None:
    from gpustack.cli import plugin_contracts, plugin_reporter
    from gpustack.testing import SUITES, GatewayTrafficSuite

    _gateway(beside)
    monkeypatch.setenv(plugin_reporter.REPORT, str(beside / "report"))
    monkeypatch.setattr(plugin_contracts, "LABELS", {})
    classes = plugin_contracts.contracts(plugin, "", SUITES, GatewayTrafficSuite, always=always)
    assert set(classes) == named


@pytest.mark.slow
def test_requests_are_sent_through_our_gateway(cli: Cli) -> None:
    ended = cli("plugins", "check", "gateway")
    assert ended.status == 0, ended.out + ended.err
    assert "ok     traffic through embedded: only a known key is answered\n" in ended.out
