"""The shipped demo models on the real engine, started with the command line that the backend gives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from operator import mul
from pathlib import Path

import gpustack_demo_model

from gpustack.plugin import LaunchRequest
from gpustack.worker.facts import read_facts
from support.engine import InstalledEngine, RunningEngine, llama_cpp_backend, running
from support.running import free_ports


def demo_file(name: str) -> Path:
    """Return the file of one of the demo models."""
    return Path(gpustack_demo_model.__file__).with_name(f"{name}.gguf")


@contextlib.contextmanager
def serving(engine: InstalledEngine, name: str, folder: Path) -> Iterator[RunningEngine]:
    """Serve a demo model until the block ends."""
    path, (port,) = demo_file(name), free_ports(1)
    request = LaunchRequest(
        instance_name=f"{name}-1",
        model_name=name,
        model=read_facts(path),
        command=str(engine.command),
        version=engine.version,
        host="127.0.0.1",
        port=port,
        model_path=str(path),
    )
    argv = llama_cpp_backend(engine.data_dir).launch(request).argv
    with running(argv, port, folder / "engine.log") as server:
        server.wait_ready()
        yield server


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how much two vectors point the same way: 1 is wholly."""
    return sum(map(mul, one, other)) / math.hypot(*one) / math.hypot(*other)
