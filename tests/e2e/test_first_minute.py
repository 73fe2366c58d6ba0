"""The README's first minute, also on a machine without a network."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from support.engine import InstalledEngine
from support.first_minute import ROOT, commands, conversation
from support.hosts import Host, network, why_not
from support.running import COMMAND, QUIET, Running, a_port_range, free_ports, processes_of, spawn, wait_ready

sys.path.append(str(ROOT / "scripts"))
from check_tracked import repository_files

pytestmark = pytest.mark.xdist_group("e2e-first-minute")


@pytest.fixture
def alone() -> Iterator[Host]:
    """A machine whose cable is pulled: it has its loopback and nothing else."""
    if reason := why_not():
        pytest.skip(reason)
    with network(1) as made:
        (host,) = made.hosts
        host.cut()
        assert host.run("ping", "-c1", "-W1", made.address).returncode != 0
        yield host


def first_minute(prefix: Sequence[str], command: str, data_dir: Path, env: dict[str, str]) -> None:
    """Type what the README says, with ``command`` for gpustack, and compare the conversation."""
    typed = [line for line in commands() if not line.startswith("export PATH")]
    assert typed == ["gpustack deploy demo", "gpustack chat demo"]
    asked = "".join(f"{question}\n" for question, _ in conversation()) + "/exit\n"
    said = ""
    for line in typed:
        words = line.replace("gpustack", command, 1).split(" ")
        # A terminal: what comes through a pipe is one prompt as a whole.
        keyboard, terminal = pty.openpty()
        os.write(keyboard, asked.encode())
        done = subprocess.run(
            [*prefix, *words, "--data-dir", str(data_dir)],
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=120,
            env=env,
            check=False,
        )
        os.close(keyboard)
        os.close(terminal)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        said += done.stdout
    answers = [answer for _, answer in conversation()]
    assert len(answers) >= 3
    flat = " ".join(said.split())
    places = [flat.find(answer) for answer in answers]
    assert all(place >= 0 for place in places), said
    assert places == sorted(places)


def test_the_conversation_is_what_the_readme_shows(stack: Running) -> None:
    first_minute((), COMMAND, stack.data_dir, stack._env)


@pytest.mark.root
def test_the_first_minute_needs_no_network(place: Path, engine: InstalledEngine, alone: Host) -> None:
    data_dir, flags = (
        place / "data",
        ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)],
    )
    running = spawn(data_dir, place / "home", flags, prefix=alone.prefix)
    try:
        wait_ready(running)
        first_minute(alone.prefix, COMMAND, data_dir, running._env)
    finally:
        running.end()
        assert not [process for process in processes_of(data_dir) if process.is_running()]


@pytest.mark.root
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_clean_clone_needs_its_network_for_the_set_up_only(place: Path, alone: Host) -> None:
    """`make demo` with a network and an empty home; then everything without."""
    clone, data_dir, home = place / "clone", place / "clone data", place / "clone home"
    home.mkdir()
    for path in repository_files():
        copy = clone / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("GPUSTACK_", "VIRTUAL_ENV"))
    }
    # Packages that were fetched once need no second journey; nothing else of the home is used.
    env |= {"UV_CACHE_DIR": env.get("UV_CACHE_DIR") or str(Path.home() / ".cache" / "uv"), "HOME": str(home)}
    env |= {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1", **QUIET}
    (port,) = free_ports(1)
    flags = f"ARGS=--data-dir '{data_dir}'"
    made = subprocess.run(
        ["make", "demo", flags], cwd=clone, env=env, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr

    log = place / "make-start.log"
    with log.open("wb") as output:
        start = subprocess.Popen(
            [*alone.prefix, "make", "start", f"PORT={port}", f"{flags} --worker-port 0 --api-port 0"],
            cwd=clone, env=env, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "Next," not in log.read_text():
            assert start.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        gpustack = str(clone / ".venv" / "bin" / "gpustack")
        first_minute(alone.prefix, gpustack, data_dir, env)
        subprocess.run(
            [*alone.prefix, gpustack, "stop", "--data-dir", str(data_dir)], env=env, check=True, timeout=60
        )
        assert start.wait(20) == 0
    finally:
        start.kill()
        for process in processes_of(data_dir):
            with contextlib.suppress(psutil.Error):
                process.kill()
