"""The fixture ``gpustack_server``: one real GPUStack for all tests of a session, started when the first asks for it.

    def test_my_backend_answers(gpustack_server, tmp_path):
        gpustack_server.deploy("demo", "chat", backend="acme")
        assert gpustack_server.chat("chat", "What is GPUStack?")

pytest finds it wherever ``gpustack-core[testing]`` is installed. What it is started with is in the fixtures
``gpustack_server_flags`` and ``gpustack_server_env``, which a ``conftest.py`` may override. ``gpustack_fleet`` gives workers
that are not there, as many as a YAML text describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

# Every run of pytest in the environment imports this module: nothing that takes time belongs here.
if TYPE_CHECKING:
    from pathlib import Path

    from gpustack.testing.fleet import FakeWorker
    from gpustack.testing.server import RunningServer


@pytest.fixture(scope="session")
def gpustack_server_flags() -> list[str]:
    """More flags of ``gpustack start`` for ``gpustack_server``; override it in a conftest.py."""
    return []


@pytest.fixture(scope="session")
def gpustack_server_env() -> dict[str, str]:
    """More environment for ``gpustack_server``; override it in a conftest.py.

    With the fakes: ``{"PYTHONPATH": str(gpustack.testing.fakes.path())}``.
    """
    return {}


@pytest.fixture(scope="session")
def gpustack_fleet() -> Callable[[Path | str], tuple[FakeWorker, ...]]:
    """A function that returns the workers which a YAML file or text describes; see :mod:`gpustack.testing.fleet`."""
    from gpustack.testing.fleet import fleet

    return fleet


@pytest.fixture(scope="session")
def gpustack_server(
    gpustack_server_flags: list[str], gpustack_server_env: dict[str, str]
) -> Iterator[RunningServer]:
    """A GPUStack that runs in a folder and on ports of its own until the session ends.

    It has ``url``, ``api_key`` (an administrator's), ``client()``, ``deploy(source, name)``, ``chat(model, text)``,
    ``cli(*args)`` and ``stop()``.
    """
    from gpustack.testing.server import running_gpustack

    with running_gpustack(None, *gpustack_server_flags, env=gpustack_server_env) as server:
        yield server
