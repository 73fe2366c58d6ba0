"""A stranger's afternoon: a new plugin from nothing to an answer, in an environment of its own.

The environment has GPUStack's members installed in it, built as wheels; third parties are seen through a path to
those of the tests' environment, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import running as support_running
from support.engine import InstalledEngine
from support.running import Running, a_port_range, gpustack

pytestmark = pytest.mark.xdist_group("e2e-new-plugin")

ROOT = Path(__file__).parents[2]
MEMBERS = (
    ".",
    "core",
    "gpustack_backends",
    "gpustack_auth",
    "gpustack_gateway",
    "plugins/gpustack-demo-model",
    "plugins/gpustack-gpu-nvidia",
    "plugins/gpustack-system",
)
PAGE = ROOT / "docs/write-a-backend-plugin.md"
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)

DEVICES = [
    {
        "uuid": f"acme-{index}",
        "index": index,
        "name": f"Acme {name}",
        "memory_total": 8 << 30,
        "memory_used": 0,
    }
    for index, name in enumerate(("One", "Two"))
]

#: One plugin for each way to be broken: its module, and what the list says of it.
BROKEN = {
    "missing-module": (None, "failed", "No module named 'broken_missing_module'"),
    "import-error": ("import nowhere_at_all", "failed", "No module named 'nowhere_at_all'"),
    "raising-hook": (
        "from gpustack.plugin import hookimpl\n\n@hookimpl\ndef register_inference_backends():\n    raise ValueError('no luck')",
        "failed",
        "no luck",
    ),
    "misspelt-hook": (
        "from gpustack.plugin import hookimpl\n\n@hookimpl\ndef register_inference_backend():\n    return []",
        "failed",
        "register_inference_backend",
    ),
    "half-class": (
        (
            "from gpustack.plugin import InferenceBackend, NoSettings, hookimpl\n\n"
            "class Half(InferenceBackend[NoSettings]):\n    name = 'half'\n    settings_type = NoSettings\n"
            "    default_version = '1'\n\n@hookimpl\ndef register_inference_backends():\n    return [Half]"
        ),
        "failed",
        "does not implement accepts, artifact, estimate, launch",
    ),
    "name-clash": (
        (
            "from gpustack.plugin import hookimpl\nfrom gpustack_acme import AcmeBackend\n\n"
            "class Another(AcmeBackend):\n    pass\n\n@hookimpl\ndef register_inference_backends():\n    return [Another]"
        ),
        "failed",
        "'acme' is claimed by two plugins: acme (gpustack-acme 0.1.0), which is used, and name-clash (broken-name-clash",
    ),
    "wrong-version": ("plugin_api_version = '9.0'", "failed", "needs version 9.0 of the plugin API"),
}


OPTIONS = """
from pydantic import BaseModel
from gpustack.plugin import hookimpl

class Options(BaseModel):
    some_pace: int = 1

@hookimpl
def register_settings():
    return [Options]
"""


@dataclass(frozen=True)
class Environment:
    """A Python environment, and how to run what is in it."""

    folder: Path
    home: Path

    @property
    def variables(self) -> dict[str, str]:
        """No network, no build isolation, and nothing of the environment of the tests."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GPUSTACK_", "PYTEST_", "PIP_", "UV_"))
        }
        return {
            **kept,
            "HOME": str(self.home),
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "VIRTUAL_ENV": str(self.folder),
            "GPUSTACK_DATA_DIR": str(self.home / "none"),
            "NO_COLOR": "1",
            "PIP_NO_INDEX": "1",
            "UV_OFFLINE": "1",
            "UV_NO_INDEX": "1",
            "UV_NO_BUILD_ISOLATION": "1",
            # As pip reads it, 0 is for "no isolation".
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    def run(
        self, *command: str, cwd: Path | None = None, status: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment; it must end with ``status``."""
        program = str(self.folder / "bin" / command[0])
        done = subprocess.run(
            [program, *command[1:]],
            cwd=cwd or self.home,
            env={**self.variables, **env},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == status, (
            f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}"
        )
        assert "Traceback" not in done.stderr
        return done

    def plugins(self) -> dict[str, Any]:
        """Return what the list says of each plugin of this machine."""
        return {
            each["name"]: each
            for each in json.loads(self.run("gpustack", "plugins", "list", "--json").stdout)
        }


@pytest.fixture(scope="module")
def environment(place: Path) -> Environment:
    """A fresh environment with GPUStack in it, and nothing else of its own but pip."""
    folder, home = place / "environment", place / "home"
    home.mkdir()
    venv.create(folder, with_pip=True, symlinks=True)
    made = Environment(folder, home)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    # The paths in such a file's folder are seen, its own files of that kind are not read: no editable members.
    (site / "third-parties.pth").write_text(sysconfig.get_path("purelib") + "\n")
    paths = [str(ROOT / member) for member in MEMBERS]
    made.run(
        *("python", "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", "--no-compile"),
        *paths,
    )
    return made


@pytest.fixture(scope="module")
def from_a_clone(place: Path) -> Environment:
    """An environment as `make start` makes it: by uv, without pip, with GPUStack's members editable in it.

    It sees the third parties of the tests' environment, whose metadata uv follows no links to.
    """
    folder, home = place / "clone/.venv", place / "clone home"
    home.mkdir()
    uv = ROOT / ".tools/uv/bin/uv"
    if not uv.exists():
        pytest.skip("`make setup` has not put uv into .tools")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True, timeout=60)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if each.suffix == ".dist-info":
            shutil.copytree(each, site / each.name)
        elif not (site / each.name).exists():
            (site / each.name).symlink_to(each)
    # As uv finds its way beside .venv in a clone.
    (place / "clone/.tools").symlink_to(ROOT / ".tools")
    script = (Path(sys.executable).parent / "gpustack").read_text(encoding="utf-8")
    (folder / "bin/gpustack").write_text(
        script.replace(str(Path(sys.executable).parent), str(folder / "bin"), 1)
    )
    (folder / "bin/gpustack").chmod(0o755)
    return Environment(folder, home)


@pytest.fixture(scope="module")
def stack(
    place: Path, environment: Environment, engine: InstalledEngine, tiny_gguf: Path
) -> Iterator[Running]:
    """What a reader of the page has after its first half: the plugin installed, and GPUStack started after that."""
    work = place / "work"
    work.mkdir()
    shell(environment, before(), work)
    install_broken(environment, place)
    install_examples(environment, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support_running, "COMMAND", str(environment.folder / "bin" / "gpustack"))
        flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
        (place / "devices.json").write_text(json.dumps(DEVICES))
        flags += ["--acme-gpu-devices", str(place / "devices.json")]
        with gpustack(place / "data", place / "gpustack home", flags, env=environment.variables) as running:
            (running.home / "tiny.gguf").symlink_to(tiny_gguf)
            yield running


def blocks() -> list[str]:
    return _BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def before() -> str:
    """Return the page's commands up to the one that starts GPUStack."""
    return "".join(blocks()).partition("gpustack start\n")[0]


def after() -> str:
    """Return those that need it."""
    return "".join(blocks()).partition("gpustack start\n")[2]


def shell(environment: Environment, commands: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-exc", commands],
        cwd=cwd,
        env={**environment.variables, **env},
        # What is typed into `gpustack chat`.
        input="Hello\n",
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def a_wheel(folder: Path, name: str, module: str | None) -> Path:
    """Return a wheel with a plugin ``name`` of the distribution ``broken-NAME``."""
    package = f"broken_{name.replace('-', '_')}"
    info = f"{package}-1.0.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: broken-{name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[gpustack]\n{name} = {package}\n",
        **({} if module is None else {f"{package}.py": module + "\n"}),
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


def install_broken(environment: Environment, place: Path) -> None:
    wheels = [str(a_wheel(place, name, module)) for name, (module, _, _) in BROKEN.items()]
    environment.run("python", "-m", "pip", "install", "--quiet", "--no-deps", *wheels)


def install_examples(environment: Environment, place: Path) -> None:
    """Build and install the other examples, as whoever copies one does."""
    for name in ("detector-plugin", "login-plugin", "gateway-plugin", "web-plugin"):
        copy = place / name
        shutil.copytree(ROOT / "examples" / name, copy)
        environment.run("python", "-m", "pip", "install", "--quiet", "--no-deps", str(copy))


def test_the_examples_do_what_they_are_for(stack: Running, environment: Environment) -> None:
    assert "--acme-gpu-devices PATH" in environment.run("gpustack", "start", "--help").stdout
    with stack.admin() as admin:
        (worker,) = admin.get("/v2/workers").json()["items"]
        found = {each["name"]: each for each in admin.get("/v2/plugins").json()["items"]}
    assert [each["name"] for each in worker["status"]["gpu_devices"]] == ["Acme One", "Acme Two"]
    page = httpx.get(f"{stack.url}/acme-pages/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert found["acme-login"]["kind"] == "auth_provider"
    assert found["acme-gateway"]["kind"] == "gateway"


def test_the_new_plugin_serves(stack: Running, environment: Environment) -> None:
    """The page's own commands: deploy with the new backend, and ask it."""
    assert after().splitlines()[0] == "gpustack deploy tiny.gguf --backend acme"
    shell(environment, after(), stack.home, GPUSTACK_DATA_DIR=str(stack.data_dir))
    with stack.admin() as admin:
        answer = admin.post(
            "/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
        )
        assert answer.status_code == httpx.codes.OK, answer.text
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
        (model,) = admin.get("/v2/models").json()["items"]
    assert model["backend"] == "acme"
    argv = next(process.cmdline() for process in stack.own_processes() if "--parallel" in process.cmdline())
    assert argv[argv.index("--parallel") + 1] == "1"


@pytest.mark.slow
def test_the_page_holds_where_there_is_no_pip(from_a_clone: Environment, place: Path) -> None:
    """The README's environment: the page's commands up to the start, word by word."""
    (work := place / "clone work").mkdir()
    said = shell(from_a_clone, before(), work)
    assert " passed" in said
    assert "ok     inference backend acme: " in said
    assert from_a_clone.plugins()["acme"]["state"] == "loaded"
    from_a_clone.run("gpustack", "plugins", "remove", "acme")
    assert "acme" not in from_a_clone.plugins()


def test_the_broken_ones_beside_it_are_told_truthfully(stack: Running) -> None:
    listed = {each["name"]: each for each in json.loads(stack.cli("plugins", "--json").stdout)}
    assert listed["acme"]["state"] == "loaded"
    assert listed["acme"]["brings"] == [{"kind": "inference_backend", "name": "acme"}]
    assert listed["backends"]["state"] == "loaded"
    for name, (_, state, reason) in BROKEN.items():
        assert listed[name]["state"] == state, name
        assert reason in listed[name]["reason"], listed[name]
        assert listed[name]["brings"] == []
        assert listed[name]["distribution"] == f"broken-{name}"
    table = stack.cli("plugins", "list").stdout
    assert re.search(r"^acme +inference backend +acme +gpustack-acme +0\.1\.0 +loaded", table, re.MULTILINE)


@pytest.mark.slow
def test_one_is_installed_and_removed_by_the_command(
    stack: Running, environment: Environment, place: Path
) -> None:
    (folder := place / "wheels").mkdir()
    good = a_wheel(folder, "options-only", OPTIONS)
    done = environment.run("gpustack", "plugins", "install", str(good))
    assert "Installed plugin options-only (broken-options-only 1.0): works." in done.stdout
    assert "gpustack restart" in done.stderr
    assert environment.plugins()["options-only"]["state"] == "loaded"
    environment.run("gpustack", "plugins", "remove", "options-only")
    assert "options-only" not in environment.plugins()
    bad = a_wheel(folder, "bad", "import nowhere_at_all")
    done = environment.run("gpustack", "plugins", "install", str(bad), status=1)
    assert "plugin bad (broken-bad 1.0) does not work: ModuleNotFoundError" in done.stderr
    environment.run("gpustack", "plugins", "remove", "broken-bad")
    done = environment.run("gpustack", "plugins", "remove", "backends", status=1)
    assert "gpustack-backends is a part of GPUStack" in done.stderr
    done = environment.run("gpustack", "plugins", "install", "nothing-of-this-name", status=1)
    assert done.stderr.splitlines()[-1].startswith(
        "Error: nothing-of-this-name cannot be installed: pip says"
    )
