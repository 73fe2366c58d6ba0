"""The verbs of the command line against a real GPUStack with a real engine."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path
from typing import Self

import psutil
import pytest

from support.engine import InstalledEngine, install_engine
from support.running import COMMAND, Running, eventually

pytestmark = pytest.mark.xdist_group("e2e-command-line")

OLDER = "2026.8.10566"


@pytest.fixture(scope="module")
def tiny(stack: Running, tiny_gguf: Path) -> str:
    stack.cli("deploy", str(tiny_gguf), "--name", "tiny")
    return "tiny"


def instances(stack: Running) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(stack.cli("ps", "--json").stdout)
    return found


def test_a_killed_engine_is_named_with_its_reason(stack: Running, tiny: str) -> None:
    pid = int(str(instances(stack)[0]["pid"]))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "restarted" in stack.cli("events", tiny).stdout, "the restart is told", seconds=30)
    eventually(
        lambda: stack.cli("events", tiny, "--tail", "1").stdout.split()[4:5] == ["running"],
        "the engine runs again",
        seconds=30,
    )

    told = stack.cli("events", tiny).stdout.splitlines()
    restart = next(line for line in told if "restarted (1)" in line)
    assert "SIGKILL" in restart
    assert json.loads(stack.cli("events", tiny, "--json").stdout)[0]["what"] == "created"
    assert len(stack.cli("events", tiny, "--full").stdout.splitlines()) >= len(told)


def test_scaling_up_and_down_waits_for_the_copies(stack: Running, tiny: str) -> None:
    done = stack.cli("scale", tiny, "2")
    assert "Scaling tiny from 1 to 2." in done.stdout
    assert [each["state"] for each in instances(stack)] == ["running", "running"]
    stack.cli("scale", tiny, "1")
    eventually(lambda: len(instances(stack)) == 1, "one copy is left")
    assert stack.cli("scale", tiny, "--", "-1", check=False).returncode == 2


def test_an_update_exchanges_the_copies(stack: Running, tiny: str) -> None:
    before = instances(stack)[0]["id"]
    done = stack.cli("update", tiny, "-p", "--ctx-size=512", "--env", "WHY=not")
    assert "exchanged" in done.stdout
    eventually(lambda: len(instances(stack)) == 1, "the old copy is gone")
    assert instances(stack)[0]["id"] != before
    shown = stack.cli("show", tiny).stdout
    assert "--ctx-size=512" in shown
    assert "WHY" in shown
    assert "/v1/chat/completions" in shown
    assert json.loads(stack.cli("show", tiny, "--json").stdout)["env"] == {"WHY": "not"}


def test_a_shell_completes_the_names_of_models(stack: Running, tiny: str) -> None:
    script = stack.cli("completion", "bash").stdout
    assert "_GPUSTACK_COMPLETE" in script
    env = {
        **stack._env,
        "GPUSTACK_DATA_DIR": str(stack.data_dir),
        "_GPUSTACK_COMPLETE": "bash_complete",
        "COMP_WORDS": "gpustack events ti",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([COMMAND], env=env, capture_output=True, text=True, timeout=30)
    assert f"plain,{tiny}" in done.stdout.splitlines()
    assert done.stderr == ""


def test_an_engine_that_runs_is_not_removed(stack: Running, tiny: str, engine: InstalledEngine) -> None:
    here = f"llama-cpp@{engine.version}"
    assert "was installed before" in stack.cli("backends", "install", here).stdout
    assert str(engine.bin_dir) in stack.cli("backends").stderr

    done = stack.cli("backends", "remove", here, check=False)

    assert done.returncode == 1
    assert "runs as tiny-" in done.stderr
    assert engine.command.exists()


def test_engines_of_workers_are_shown_asked_for_and_not_removed_while_they_run(
    stack: Running, tiny: str, engine: InstalledEngine
) -> None:
    def engines() -> list[dict[str, object]]:
        listed = json.loads(stack.cli("backends", "list", "--json").stdout)
        return [row for each in listed for row in each["engines"]]

    here = f"llama-cpp=={engine.version}"
    eventually(
        lambda: any(each["version"] == engine.version for each in engines()), "the worker tells what it has"
    )

    done = stack.cli("backends", "install", here, "--worker", "all")

    assert f"{here} is installed on " in done.stdout
    (row,) = [each for each in engines() if each["version"] == engine.version]
    assert row["state"] == "installed"
    assert row["last_used_at"]
    listed = stack.cli("backends").stdout
    assert "LAST USED" in listed
    assert here in listed
    worker = str(row["worker_name"])
    refused = stack.cli("backends", "remove", here, "--worker", worker, check=False)
    assert refused.returncode == 1
    assert "another GPUStack installed" in refused.stderr, "tests share the folder of engines"
    wrong = stack.cli("backends", "install", "llama-cpp==no.version", "--worker", worker, check=False)
    assert wrong.returncode == 1
    assert "is no version of xllamacpp" in wrong.stderr
    nowhere = stack.cli("backends", "install", here, "--worker", f"{worker}x", check=False)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (1, 1)
    assert f"did you mean {worker}" in nowhere.stderr


@pytest.mark.slow
def test_an_engine_is_carried_to_a_machine_without_a_network(
    stack: Running, engine: InstalledEngine, place: Path
) -> None:
    """The commands of docs/engines.md, with the real engine, from its lock."""
    there = ["--data-dir", str(place / "air gap")]
    file = place / "llama-cpp.tar"

    said = stack.cli("backends", "export", "llama-cpp", str(file), timeout=600).stdout
    assert "1 wheel" in said
    cut_off = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [COMMAND, "backends", "import", str(file), *there],
        env={**stack._env, **cut_off, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr
    link = place / "air gap" / "bin" / engine.command.name
    assert engine.version in subprocess.run([link, "--version"], capture_output=True, text=True).stdout
    removed = stack.cli("backends", "remove", f"llama-cpp=={engine.version}", *there)
    assert "Removed" in removed.stdout
    assert list((place / "air gap" / "pipx" / "wheels").glob("gpustack-llama-server*")) == []


def test_an_engine_is_installed_before_the_first_start_and_removed(
    stack: Running, engine: InstalledEngine, place: Path
) -> None:
    elsewhere = ["--data-dir", str(place / "never started")]
    link = place / "never started" / "bin" / engine.command.name

    stack.cli("backends", "install", f"llama-cpp@{engine.version}", *elsewhere, timeout=300)
    assert subprocess.run([link, "--version"], capture_output=True, timeout=60).returncode == 0
    assert engine.version in stack.cli("backends", "list", *elsewhere).stdout

    stack.cli("backends", "remove", f"llama-cpp@{engine.version}", *elsewhere)
    assert list(link.parent.iterdir()) == []
    again = stack.cli("backends", "remove", f"llama-cpp@{engine.version}", *elsewhere, check=False)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)


def test_copies_are_watched_on_a_terminal(stack: Running, tiny: str) -> None:
    with Terminal(stack, "ps", "--watch") as terminal:
        terminal.expect("running")
        terminal.resize(40, 200)
        stack.cli("scale", tiny, "2")
        terminal.expect("2 running")
        stack.cli("scale", tiny, "1")
        terminal.expect("1 running")
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.is_restored()


def test_ctrl_c_ends_watching_with_the_terminal_restored(stack: Running, tiny: str) -> None:
    with Terminal(stack, "ls", "-w") as terminal:
        terminal.expect(tiny)
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert terminal.is_restored()


def test_removing_waits_for_the_engines(stack: Running, tiny: str) -> None:
    assert stack.cli("rm", tiny).stdout == "Removed tiny.\n"
    assert instances(stack) == []
    assert stack.cli("events", tiny, "--tail", "1").stdout.split()[4] == "removed"


class Terminal:
    """A command under a pseudo-terminal of its own."""

    def __init__(self, stack: Running, *args: str) -> None:
        self._main, side = pty.openpty()
        self.resize(24, 100)
        self._before = termios.tcgetattr(side)
        self._side = side
        env = {**stack._env, "GPUSTACK_DATA_DIR": str(stack.data_dir), "TERM": "xterm-256color"}
        self._process = subprocess.Popen(
            [COMMAND, *args],
            stdin=side,
            stdout=side,
            stderr=side,
            env=env,
            start_new_session=True,
            # Opening it makes it the session's own, so that Ctrl-C reaches the command.
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509
        )
        self.output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._main)
        os.close(self._side)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._main, (rows, columns))

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def expect(self, text: str, seconds: float = 30.0) -> None:
        """Read until ``text`` is drawn, after whatever was found before."""
        deadline, start = time.monotonic() + seconds, len(self.output)
        while text not in self.output[start:]:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.output[start:]!r}"
            self._read()

    def wait(self) -> int:
        while self._process.poll() is None:
            self._read()
        self._read()
        return self._process.returncode

    def is_restored(self) -> bool:
        """Tell whether the other screen was left, the cursor shown, and the settings are as before."""
        ended = self.output.endswith("\x1b[?1049l") or "\x1b[?1049l" in self.output[-40:]
        return ended and "\x1b[?25h" in self.output[-40:] and termios.tcgetattr(self._side) == self._before

    def _read(self) -> None:
        if select.select([self._main], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):
                self.output += os.read(self._main, 65536).decode(errors="replace")


@pytest.mark.slow
def test_two_versions_and_an_environment_with_a_package_serve_at_once(
    stack: Running, tiny: str, engine: InstalledEngine, tiny_gguf: Path
) -> None:
    older = install_engine(OLDER)
    stack.cli("deploy", str(tiny_gguf), "--name", "older", "--backend-version", OLDER, timeout=600)
    stack.cli(
        *("deploy", str(tiny_gguf), "--name", "extra", "--env", "GPUSTACK_BACKEND_DEPS=iniconfig>=2"),
        timeout=600,
    )

    found = {str(each["model_name"]): int(str(each["pid"])) for each in instances(stack)}
    programs = {name: " ".join(psutil.Process(pid).cmdline()) for name, pid in found.items()}

    assert str(engine.command) in programs[tiny]
    assert str(older.command) in programs["older"]
    with_package = next(word for word in programs["extra"].split() if engine.command.name in word)
    assert with_package.startswith(f"{engine.command}_")
    python = Path(with_package).resolve().parent / "python"
    assert subprocess.run([python, "-c", "import iniconfig"], capture_output=True).returncode == 0
    for name in (tiny, "older", "extra"):
        assert stack.cli("chat", name, "--once", "Hello", "--max-tokens", "2").stdout.strip()
    listed = stack.cli("backends", "list").stdout
    assert f"llama-cpp=={engine.version} with iniconfig>=2" in listed
    stack.cli("rm", "older", "extra")
    stack.cli(
        *(
            "backends",
            "remove",
            f"llama-cpp=={engine.version}",
            "--package",
            "iniconfig>=2",
            "--worker",
            "all",
        )
    )
    assert not Path(with_package).exists()
