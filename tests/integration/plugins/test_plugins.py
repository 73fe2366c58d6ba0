"""`gpustack plugins`: listing, installing, removing, and beginning a new one."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import tokenize
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from gpustack.cli import plugin_environment, plugin_found, plugin_new
from gpustack.cli.plugin_environment import Installer, installer, own, removable
from gpustack.cli.plugin_wanted import wanted
from gpustack.cli.usage import WrongUsage
from gpustack.extensions import load_catalogue
from gpustack.kit.errors import Conflict, GPUStackError, NotFound
from support.fake_api import FakeApi, Reply
from support.installed import installed_plugin, search_path

Cli = Any
ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/third-party-backend-plugin"
PAGE = ROOT / "docs/write-a-backend-plugin.md"

STATES = {
    "items": [
        {"kind": "inference_backend", "name": each, "plugin": "acme", "distribution": "gpustack-acme", "version": "1.0"}
        for each in ("acme", "acme-turbo")
    ],
    "failures": [
        {"plugin": "bad", "distribution": "bad-dist", "version": "2", "stage": "import", "error": "no such module"}
    ],
    "plugins": [
        {"name": "acme", "distribution": "gpustack-acme", "version": "1.0", "state": "loaded", "reason": ""},
        {"name": "bad", "distribution": "bad-dist", "version": "2", "state": "failed", "reason": "no such module"},
        {"name": "off", "distribution": "off-dist", "version": "3", "state": "blocked", "reason": "by name"},
        {"name": "options", "distribution": "o-dist", "version": "4", "state": "loaded", "reason": ""},
    ],
}  # fmt: skip


# Listing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("plugins",), ("plugins", "list")])
def test_the_servers_plugins_are_listed(cli: Cli, api: FakeApi, words: tuple[str, ...]) -> None:
    api.on("GET", "/v2/plugins", Reply(body=STATES))
    lines = [re.split(r"\s{2,}", line) for line in cli(*words).out.splitlines()]
    assert lines == [
        ["NAME", "KIND", "BRINGS", "DISTRIBUTION", "VERSION", "STATE", "REASON"],
        ["acme", "inference backend", "acme", "gpustack-acme", "1.0", "loaded", "-"],
        ["acme", "inference backend", "acme-turbo", "gpustack-acme", "1.0", "loaded", "-"],
        ["bad", "-", "-", "bad-dist", "2", "failed", "no such module"],
        ["off", "-", "-", "off-dist", "3", "blocked", "by name"],
        ["options", "-", "-", "o-dist", "4", "loaded", "-"],
    ]
    (acme, *_) = json.loads(cli(*words, "--json").out)
    assert acme["brings"][1] == {"kind": "inference_backend", "name": "acme-turbo"}


def test_a_server_without_states_is_listed_too(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/plugins", Reply(body={**STATES, "plugins": []}))
    states = {each["name"]: each["state"] for each in json.loads(cli("plugins", "--json").out)}
    assert states == {"acme": "loaded", "bad": "failed"}


def test_this_machines_plugins_are_listed_when_nothing_runs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_PLUGINS_BLOCK", "demo-model")
    listed = {each["name"]: each for each in json.loads(cli("plugins", "--json").out)}
    assert {"kind": "inference_backend", "name": "llama-cpp"} in listed["backends"]["brings"]
    assert listed["demo-model"]["state"] == "blocked"
    assert "GPUSTACK_PLUGINS_BLOCK" in listed["demo-model"]["reason"]


def test_a_fresh_process_sees_the_same() -> None:
    assert plugin_found.afresh() == plugin_found.here()


def test_a_plugin_that_ends_the_process_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_plugin(tmp_path, "ender", "import os\nprint('about to end')\nos._exit(7)")
    monkeypatch.setenv("PYTHONPATH", search_path(tmp_path))
    with pytest.raises(GPUStackError, match="ends with status 7"):
        plugin_found.afresh()


# What may be named ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["acme", "gpustack-acme", "Acme.Plugin_1", "acme==1.2.3", "acme==1.0rc1+cu12"]
)
def test_a_distribution_can_be_named(text: str) -> None:
    asked = wanted(text)
    assert asked.what == text
    assert not asked.path
    assert asked.distribution == re.sub(r"[._]", "-", text.partition("==")[0]).lower()


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-r", "--index-url=x", "-e.", "acme; rm", "acme --pre", "acme>=1", "acme==", "acme==1 --pre", "a[b]",
        "https://acme.example/a.whl", "git+https://acme.example/a", "file:///tmp/a.whl", "acme @ https://x.example/a",
        "./nowhere", "nowhere.whl", "acme\n--pre", "acme==1\n",
    ],
)  # fmt: skip
def test_nothing_else_reaches_the_installer(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongUsage):
        wanted(text)


def test_wheels_archives_and_projects_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("Acme_Plug-1.0-py3-none-any.whl", "w"), tarfile.open("acme_plug-1.0.tar.gz", "w:gz"):
        pass
    for name in ("Acme_Plug-1.0-py3-none-any.whl", "acme_plug-1.0.tar.gz"):
        assert wanted(name).distribution == "acme-plug"
        assert wanted(name).what == str(tmp_path / name)
    Path("-odd").mkdir()
    Path("-odd/pyproject.toml").write_text('[project]\nname = "Odd_One"\n')
    with pytest.raises(WrongUsage):
        wanted("-odd")
    assert wanted("./-odd").distribution == "odd-one"
    assert wanted("./-odd").what.startswith("/")
    assert wanted("./-odd[test]").what == f"{tmp_path}/-odd[test]"
    assert wanted("./-odd[test, more]").distribution == "odd-one"
    Path("empty").mkdir()
    with pytest.raises(WrongUsage, match=r"no pyproject\.toml"):
        wanted("./empty")
    Path("text.txt").touch()
    with pytest.raises(WrongUsage, match="no wheel"):
        wanted("./text.txt")


def test_a_folder_can_be_named_editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text('[project]\nname = "acme"\n')
    asked = wanted(".[test]", editable=True)
    assert (asked.what, asked.distribution, asked.editable) == (f"{tmp_path}[test]", "acme", True)
    with pytest.raises(WrongUsage):
        wanted("acme==1.0", editable=True)
    with (
        tarfile.open("acme-1.0.tar.gz", "w:gz"),
        pytest.raises(WrongUsage, match="--editable takes the folder"),
    ):
        wanted("acme-1.0.tar.gz", editable=True)


@pytest.mark.parametrize(
    ("name", "what"), [("a-1.tar.gz", "source archive"), ("a-1-py3-none-any.whl", "wheel")]
)
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("rubbish")
    with pytest.raises(WrongUsage, match=f"is no {what}, whatever its name says"):
        wanted(str(tmp_path / name))


# Where they go -------------------------------------------------------------------------------------------


def test_an_environment_of_the_system_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(Conflict, match="managed by the system"):
        installer()


def test_one_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_environment.os, "access", lambda *_: False)
    with pytest.raises(Conflict, match="cannot be written by you"):
        installer()


@pytest.mark.parametrize(
    ("pips", "uv", "command"),
    [
        (("python", "base"), "/bin/uv", ("python", "-P", "-m", "pip")),
        (("base",), "/bin/uv", ("/bin/uv", "pip")),
        (("base",), None, ("base", "-P", "-m", "pip", "--python", "python")),
        ((), None, None),
    ],
)
def test_pip_comes_first_then_uv_then_the_pip_of_the_python_below(
    pips: tuple[str, ...], uv: str | None, command: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_environment, "_refuse_foreign", lambda: None)
    monkeypatch.setattr(sys, "executable", "python")
    monkeypatch.setattr(sys, "_base_executable", "base")
    monkeypatch.setattr(plugin_environment, "_has_pip", lambda python: python in pips)
    monkeypatch.setattr(plugin_environment, "_uv", lambda: uv)
    if command is None:
        with pytest.raises(Conflict, match="neither is here"):
            installer()
    else:
        assert installer().command == command


def _script(folder: Path, status: int, said: str) -> Installer:
    """Return an installer that writes its arguments down and ends as told."""
    program = folder / "installer"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{folder}/words\nfor w; do case $w in */constraints.txt) cp "$w" {folder};; esac; done\n'
        f"echo '{said}'\nexit {status}\n"
    )
    program.chmod(0o755)
    return Installer(name="pip", command=(str(program),))


def test_what_gpustack_needs_keeps_its_version(tmp_path: Path) -> None:
    _script(tmp_path, 0, "").install(wanted("acme==1.0"))
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:2] == ["install", "--constraint"]
    assert words[-2:] == ["--", "acme==1.0"]
    kept = (tmp_path / "constraints.txt").read_text().splitlines()
    assert f"gpustack-core=={own()['gpustack-core']}" in kept
    assert f"litestar=={own()['litestar']}" in kept


def test_an_installers_trouble_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing = _script(tmp_path, 1, "much\nERROR: it is broken")
    with pytest.raises(GPUStackError) as told:
        failing.install(wanted("acme"))
    assert told.value.message == "acme cannot be installed: pip says: it is broken"
    assert "much" not in capfd.readouterr().err
    monkeypatch.setenv("GPUSTACK_DEBUG", "1")
    with pytest.raises(GPUStackError, match="acme cannot be removed: pip says: it is broken"):
        failing.remove("acme")
    assert "much" in capfd.readouterr().err


# Removing ------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plugins of strangers beside ours."""
    ours = plugin_environment.plugins_now()
    theirs = {("acme", "Gpustack_Acme", "1"), ("both", "one-dist", "1"), ("both", "two-dist", "1")}
    monkeypatch.setattr(plugin_environment, "plugins_now", lambda: ours | theirs)


@pytest.mark.usefixtures("installed")
def test_a_plugin_is_removed_by_either_name(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    assert removable("acme") == removable("gpustack-acme") == "Gpustack_Acme"
    with pytest.raises(WrongUsage, match="one-dist and of two-dist"):
        removable("both")
    assert removable("two.dist") == "two-dist"
    monkeypatch.setattr(plugin_environment, "installer", lambda: _script(tmp_path, 0, ""))
    ended = cli("plugins", "remove", "acme")
    assert ended.out == "Removed Gpustack_Acme.\n"
    assert (tmp_path / "words").read_text().splitlines() == ["uninstall", "--yes", "--", "Gpustack_Acme"]


@pytest.mark.parametrize(
    "name", ["backends", "gpustack-backends", "gpustack_system", "system", "gpustack-core"]
)
def test_gpustacks_own_are_not_removed(name: str) -> None:
    with pytest.raises(Conflict, match="is a part of GPUStack and stays"):
        removable(name)


@pytest.mark.parametrize("name", ["pydantic", "gpustack", "-y", "--help", "../x", "systen"])
def test_what_is_no_plugin_is_not_removed(name: str) -> None:
    with pytest.raises(NotFound):
        removable(name)


# Beginning one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "example"),
    [
        ("backend", "acme", EXAMPLE.name),
        ("detector", "acme-gpu", "detector-plugin"),
        ("login", "acme-login", "login-plugin"),
        ("gateway", "acme-gateway", "gateway-plugin"),
        ("web", "acme-pages", "web-plugin"),
    ],
)
def test_an_example_is_what_the_command_writes(
    cli: Cli, tmp_path: Path, kind: str, name: str, example: str
) -> None:
    assert cli("plugins", "new", kind, name, "--directory", str(tmp_path)).status == 0
    assert _files(tmp_path / name) == _files(EXAMPLE.with_name(example))


def test_a_backend_is_70_lines_of_code_at_most() -> None:
    text = (EXAMPLE / "src/gpustack_acme/__init__.py").read_bytes()
    tokens = tokenize.tokenize(io.BytesIO(text).readline)
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING, tokenize.ENDMARKER,
             tokenize.INDENT, tokenize.DEDENT}  # fmt: skip
    assert len({token.start[0] for token in tokens if token.type not in blank}) <= 70


@pytest.mark.parametrize("kind", plugin_new.kinds())
def test_each_kind_writes_a_plugin_that_loads(
    cli: Cli, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("plugins", "new", kind, "some-thing", "--directory", str(tmp_path)).status == 0
    folder = tmp_path / "some-thing"
    assert not [
        each
        for each in folder.rglob("*")
        if "{{" in each.name or (each.is_file() and "{{" in each.read_text())
    ]
    monkeypatch.syspath_prepend(folder / "src")
    point = EntryPoint("some-thing", "gpustack_some_thing", "gpustack")
    catalogue = load_catalogue([point], blocked=())
    assert catalogue.failures == []
    assert catalogue.plugins["some-thing"].state == "loaded"
    assert oct(folder.stat().st_mode & 0o777) == oct(0o777 & ~plugin_new._umask())


# Those of a backend are run by tests/e2e/test_new_plugin.py, where GPUStack is installed as strangers have it.
@pytest.mark.parametrize("kind", [kind for kind in plugin_new.kinds() if kind != "backend"])
def test_each_kinds_own_tests_pass(cli: Cli, kind: str, tmp_path: Path) -> None:
    cli("plugins", "new", kind, "some-thing", "--directory", str(tmp_path))
    folder = tmp_path / "some-thing"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", f"--basetemp={tmp_path / 'runs'}"],
        cwd=folder, env={"PYTHONPATH": search_path(folder / "src"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "Acme",
        "acme_x",
        "-x",
        "1acme",
        "acme-",
        "a--b",
        "",
        "../acme",
        "a/b",
        "a" * 41,
        "gpustack-x",
        "inference",
        # A plugin's distribution is called gpustack-NAME.
        *("core", "backends", "auth", "gateway", "system", "demo-model", "llama-server"),
        # A plugin that is here.
        "postgresql",
    ],
)
def test_a_name_that_cannot_be_one_is_refused(cli: Cli, name: str, tmp_path: Path) -> None:
    ended = cli("plugins", "new", "--directory", str(tmp_path), "--", "backend", name)
    assert ended.status == 2
    assert list(tmp_path.glob("*")) == []


def test_what_is_there_is_not_touched(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    ended = cli("plugins", "new", "backend", "acme", "--directory", str(tmp_path))
    assert (ended.status, list((tmp_path / "acme").iterdir())) == (1, [])
    assert "is there already" in ended.err


def test_an_unknown_kind_lists_those_there_are(cli: Cli, tmp_path: Path) -> None:
    ended = cli("plugins", "new", "backed", "acme", "--directory", str(tmp_path))
    assert ended.status == 2
    assert "backend" in ended.err


def test_nothing_is_left_half_written(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = Path.write_text, iter(range(2))

    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        if next(written, None) is None:
            raise OSError(28, "No space left on device", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    ended = cli("plugins", "new", "backend", "acme", "--directory", str(tmp_path))
    assert (ended.status, list(tmp_path.iterdir())) == (1, [])
    assert "No space left" in ended.err


def test_the_page_shows_the_example() -> None:
    files = "".join(_files(EXAMPLE).values())
    shown = re.findall(r"^```(?:python|toml)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(shown) >= 9
    for block in shown:
        assert block in files


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"__pycache__", ".pytest_cache"} & {*path.parts}
    }
