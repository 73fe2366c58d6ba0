"""Every command of the README and of docs/ does what it says there."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import InstalledEngine
from support.running import COMMAND, Running, a_port_range, gpustack

pytestmark = pytest.mark.xdist_group("e2e-documents")

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Run by the tests of the repository, each in its own way.
_MAKE = re.compile(r"^make (\w[\w-]*)")


def commands(document: str) -> list[str]:
    """Return the shell commands of a document, one per line, with continued lines joined."""
    blocks = "".join(_BLOCK.findall((ROOT / document).read_text(encoding="utf-8")))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(
    params=[
        "README.md",
        "plugins/gpustack-demo-model/README.md",
        *(
            f"docs/{name}.md"
            for name in (
                "getting-started",
                "command-line",
                "deployment",
                "engines",
                "placement",
                "scaling",
                "settings",
                "troubleshooting",
            )
        ),
    ]
)
def document(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fresh(
    place: Path, document: str, engine: InstalledEngine, tiny_gguf: Path, tiny_embedding_gguf: Path
) -> Iterator[Running]:
    """A new GPUStack, and a home that holds the files the documents speak of."""
    name = document.removesuffix(".md").replace("/", " ")
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(6)]
    with gpustack(place / f"docs {name}", place / f"docs home {name}", flags) as running:
        (running.home / "examples").symlink_to(ROOT / "examples")
        (running.home / "tiny.gguf").symlink_to(tiny_gguf)
        (running.home / "embedding.gguf").symlink_to(tiny_embedding_gguf)
        yield running


def test_the_commands_work(fresh: Running, document: str) -> None:
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    key = json.loads(fresh.cli("keys", "create", "documents", "--json").stdout)["value"]
    found = commands(document)
    assert found
    for command in found:
        if make := _MAKE.match(command):
            assert f"\n{make[1]}:" in targets
        elif not command.startswith("export PATH"):
            run(fresh, command, key)


def run(running: Running, command: str, key: str) -> None:
    env = {
        **running._env,
        "PATH": f"{Path(COMMAND).parent}:/usr/bin:/bin",
        "GPUSTACK_DATA_DIR": str(running.data_dir),
        "KEY": key,
    }
    shown = command.replace("http://localhost:9080", running.url).replace("curl ", "curl -sSf ")
    if "workers label NAME" in shown:
        with running.admin() as admin:
            shown = shown.replace("NAME", admin.get("/v2/workers").json()["items"][0]["name"])
    text = "Hello\n" if " chat " in command else ""
    done = subprocess.run(
        ["bash", "-c", shown],
        input=text,
        cwd=running.home,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    if "curl" in command:
        assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant"
