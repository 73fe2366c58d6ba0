"""`gpustack plugins`: listing, installing, removing, checking, and beginning a new one."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tokenize
import zipfile
from collections.abc import Iterator
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
    _plugin(tmp_path, "ender", "import os\nprint('about to end')\nos._exit(7)")
    monkeypatch.setenv("PYTHONPATH", _path(tmp_path))
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
        cwd=folder, env={"PYTHONPATH": _path(folder / "src"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
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


# Checking ------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose distributions are installed, for this process and those that it starts."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", _path(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("checked_")]:
        del sys.modules[name]


def _plugin(folder: Path, name: str, module: str) -> None:
    """Install a plugin ``name`` of the distribution ``checked-NAME`` into ``folder``."""
    package = f"checked_{name}"
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: checked-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gpustack]\n{name} = {package}\n")
    (folder / f"{package}.py").write_text(module)


def _web(folder: Path, name: str, path: str, more: str = "") -> None:
    """Install a plugin with a web app ``acme``, whose suite is the quickest, at ``path``, and with ``more`` in it."""
    files = plugin_new.rendered("web", plugin_new.values_of("web", "acme"))
    module = files["src/gpustack_acme/__init__.py"]
    _plugin(folder, name, module.replace('path = "/acme"\n', f'path = "{path}"\n\n{more}'))
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
    _plugin(beside, "broken", "import nowhere_at_all")
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
    _plugin(beside, "ender", "import os; os._exit(0)")
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
    _plugin(beside, "nothing", NOTHING.format(what="web_apps", classes=""))
    ended = cli("plugins", "check", "nothing")
    assert ended.status == 1
    assert ended.out.startswith("fails  nothing: it brings something\n       it loads and brings nothing: ")


def test_one_that_brings_options_alone_is_as_good(cli: Cli, beside: Path) -> None:
    options = "from pydantic import BaseModel\n\nclass Options(BaseModel):\n    checked_pace: int = 1\n\n"
    _plugin(beside, "options", options + NOTHING.format(what="settings", classes="Options"))
    ended = cli("plugins", "check", "options")
    assert (ended.status, ended.out) == (0, "ok     options: it brings something\n")


def _path(*first: Path) -> str:
    """Return what PYTHONPATH is, with other folders before it."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"__pycache__", ".pytest_cache"} & {*path.parts}
    }
