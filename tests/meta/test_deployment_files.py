"""The examples of a deployment, and what the documents say of it, agree with the program."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpustack.app import ending
from gpustack.settings.declared import CORE
from gpustack.settings.load import load
from support.running import COMMAND

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
UNIT = EXAMPLES / "single-node" / "gpustack.service"
COMPOSE = [
    ["single-node/compose.yaml"],
    ["single-node/compose.yaml", "single-node/compose.nvidia.yaml"],
    ["cluster/compose.yaml"],
    ["cluster/worker.compose.yaml"],
]
INSTALLED = "/opt/gpustack/bin/gpustack"
#: Seconds within which GPUStack has ended, however it hangs.
ENDS_WITHIN = ending.SERVER_GRACE + ending.WORKER_GRACE + ending.ENGINE_GRACE + ending.DATABASE_GRACE
#: In these blocks stand commands that need root, systemd or Docker; what stands in ```bash blocks is run.
SHELL_BLOCK = re.compile(r"^( *)```shell\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = ["docs/deployment.md", "examples/cluster/README.md"]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in CORE.values():
        for variable in option.variables:
            monkeypatch.delenv(variable, raising=False)


def service() -> configparser.SectionProxy:
    """The unit's [Service] section; of keys that stand there several times, the last."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser["Service"]


def commands(document: str) -> list[str]:
    """The lines of the document's shell blocks."""
    blocks = SHELL_BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
    return [line.strip() for _, block in blocks for line in block.splitlines() if line.strip()]


# systemd ------------------------------------------------------------------------------------------------


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(INSTALLED, COMMAND))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_leaves_what_the_next_start_adopts() -> None:
    found = service()
    assert found["KillMode"] == "process"
    assert found["OOMPolicy"] == "continue"
    assert float(found["TimeoutStopSec"]) > 2 * ENDS_WITHIN
    assert found["Restart"] == "on-failure"
    # Its files and devices are those of the engines too, which outlive it.
    assert not {"PrivateTmp", "PrivateDevices", "NoNewPrivileges", "DynamicUser"} & set(found)


def test_the_units_commands_are_commands_of_ours() -> None:
    found = service()
    for key in ("ExecStart", "ExecReload"):
        program, *words = shlex.split(found[key])
        assert program == INSTALLED
        assert_known(words)


# Configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single-node/config.yaml", "cluster/server.yaml", "cluster/worker.yaml"])
def test_a_configuration_file_is_right_with_and_without_its_comments(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / name).read_text()
    everything = re.sub(r"^#(?=[a-z_]+: )", "", text, flags=re.MULTILINE)
    assert everything != text
    (tmp_path / "token").write_text("secret")
    flags = {"token_file": str(tmp_path / "token")} if "token_file" in text else {}
    for content in (text, everything):
        (tmp_path / "config.yaml").write_text(content)
        load({**flags, "config_file": str(tmp_path / "config.yaml")})


def test_the_environment_file_names_variables_that_exist() -> None:
    text = (EXAMPLES / "single-node" / "gpustack.env").read_text()
    names = re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE)
    assert names
    known = {variable for option in CORE.values() for variable in option.variables}
    assert {name for name in names if name.startswith("GPUSTACK_")} <= known
    assert "HF_TOKEN" in known


# Containers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", COMPOSE, ids=lambda files: files[-1])
def test_compose_understands_the_files(files: list[str]) -> None:
    composed = compose_config(files)
    for name, found in composed["services"].items():
        assert found["image"] == "gpustack", name
        assert found["restart"] == "unless-stopped"
        assert seconds(found["stop_grace_period"]) > 2 * ENDS_WITHIN
        assert_known(list(found.get("command") or []))
        variables = {each for each in found["environment"] if each.startswith("GPUSTACK_")}
        assert variables <= {option.variable for option in CORE.values()}


def compose_config(files: list[str]) -> Any:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is missing; `make test` as root installs it on Debian and its kin")
    command = [program, *(word for name in files for word in ("--file", str(EXAMPLES / name))), "config"]
    env = {"PATH": os.environ["PATH"], "GPUSTACK_SERVER_URL": "http://192.0.2.10"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def seconds(duration: str) -> float:
    return float(sum(int(n) * {"m": 60, "s": 1}[unit] for n, unit in re.findall(r"(\d+)([ms])", duration)))


def test_the_image_opens_the_ports_that_are_the_defaults() -> None:
    exposed = re.search(r"^EXPOSE (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == [str(CORE[name].default) for name in ("port", "worker_port")]


# Documents ----------------------------------------------------------------------------------------------


def test_the_table_of_ports_has_the_defaults_of_the_options() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    rows = dict(re.findall(r"^\| ([\d-]+) \| `--([a-z-]+)` \|", text, re.MULTILINE))
    ports = {
        option.name: str(option.default)
        for option in CORE.values()
        # What this version does not open yet has no place in a list for firewalls.
        if "port" in option.name.split("_") and not option.option.later
    }
    assert {name.replace("-", "_"): port for port, name in rows.items()} == ports


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_that_need_root_are_right_as_far_as_can_be_seen(document: str) -> None:
    found = commands(document)
    assert found
    script = subprocess.run(["bash", "-n"], input="\n".join(found), capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    for line in found:
        for word in re.findall(r"(?<!\S)(?:examples|scripts)/\S+", line):
            assert (ROOT / word).exists(), line
        for words in re.findall(rf"(?:^|\s)(?:{INSTALLED}|exec \S+ gpustack) (.*)$", line):
            assert_known(shlex.split(words))


def assert_known(words: list[str]) -> None:
    """Fail when ``gpustack WORDS`` has a subcommand or an option that does not exist."""
    if not words:
        return
    shown = subprocess.run([COMMAND, words[0], "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for word in words:
        assert not word.startswith("--") or re.search(rf"{re.escape(word)}\b", shown.stdout), word
