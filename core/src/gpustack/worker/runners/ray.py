"""A private Ray for the members of one instance: which one, on which ports, and what is run in the place of engines.

A node is ``ray start --block`` below a small program of ours, :mod:`.ray_node`, which runs in Ray's own environment and
is to the worker what an engine is: it is watched, adopted and ended with everything it started, never by ``ray stop``,
which ends all Rays of a host.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpustack.kit.errors import system_line
from gpustack.kit.paths import write_atomic
from gpustack.plugin import LaunchPlan, PipxPackage, Probe, Refused
from gpustack.worker.artifacts.child import run_child
from gpustack.worker.environment import clean_environment
from gpustack.worker.runners import ray_node

#: What is installed for engines that bring no Ray of their own.
RAY = PipxPackage(package="ray[default,client]", version="2.60.0", command="ray")
#: The first that lets nobody in without a token.
_FIRST_WITH_TOKENS = (2, 52)
#: Seconds in which a Ray has to say its version.
_PATIENCE = 60.0
_VERSION = re.compile(r"ray, version (\d+)\.(\d+)")

#: The ports of a head, then those of every node, in the order in which members have them after their engine's own.
HEAD = ("gcs", "client", "dashboard")
NODE = ("node_manager", "object_manager", "runtime_env_agent", "agent_grpc", "agent_listen", "metrics")


def worker_ports(gpus: int) -> int:
    """Return how many ports the processes of a node need: those that wait for work, and some for each GPU."""
    return 16 + 8 * gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a private Ray. ``ports`` are by the names of :data:`HEAD` and :data:`NODE`."""

    ray: str
    head: bool
    #: Where the others reach it, and where its head answers.
    host: str
    address: str
    ports: Mapping[str, int]
    worker_ports: Sequence[int]
    #: How many nodes there will be, this one included.
    nodes: int
    gpus: int
    #: Where Ray keeps its sockets: a short path, since the system allows no long ones for these. It opens it to
    #: everybody, so it lies in a folder that is ours alone.
    folder: str
    token_file: str


def beside(command: str) -> str:
    """Return the Ray in the environment of an engine's ``command``; empty when it brings none."""
    found = Path(command).resolve().parent / "ray"
    return str(found) if os.access(found, os.X_OK) else ""


async def check_version(ray: str) -> None:
    """Raise Refused for a Ray that would let anybody in. It is asked without our environment, which has secrets."""
    with tempfile.TemporaryDirectory(prefix="gpustack-", ignore_cleanup_errors=True) as folder:
        output = Path(folder) / "said"
        try:
            await run_child(
                [ray, "--version"],
                env=clean_environment(()),
                cwd=Path(folder),
                output=output,
                timeout=_PATIENCE,
            )
        except TimeoutError as error:
            raise Refused(f"{ray} does not say its version within {_PATIENCE:.0f} s") from error
        except OSError as error:
            raise Refused(f"{ray} does not run: {system_line(error)}") from error
        said = output.read_text(encoding="utf-8", errors="replace")
    found = _VERSION.search(said)
    if found is None or (int(found[1]), int(found[2])) < _FIRST_WITH_TOKENS:
        raise Refused(
            f"{ray} is {' '.join(said.split())[:200] or 'no Ray'}; members need one that knows tokens, 2.52 or later"
        )


def folder_of(token: str, instance_name: str, attempt: int) -> Path:
    """Return the folder of a node's sockets: short, another for each attempt, and the same with all its members.

    Nobody can tell its name before it is there who does not know the members' token.
    """
    name = hashlib.sha256(f"{token} {instance_name} {attempt}".encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"gpustack-ray-{name}"


def write_token(token_file: Path, token: str) -> None:
    """Write the token where only we read it. Blocks; raises OSError."""
    token_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(token_file, token, mode=0o600)


def around(plan: LaunchPlan, node: Node) -> LaunchPlan:
    """Return what is run for ``plan`` in a Ray: on the leader a head and the engine, elsewhere a node alone."""
    python = str(Path(node.ray).resolve().parent / "python")
    said = {**asdict(node), "engine": list(plan.argv) if node.head else []}
    env = {
        **plan.env,
        "RAY_ADDRESS": node.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": node.token_file,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ready = plan.ready if node.head else Probe(path="", address=(node.host, node.ports["node_manager"]))
    # -P: nothing in the working directory is to be taken for a module.
    return replace(plan, argv=(python, "-P", ray_node.__file__, json.dumps(said)), env=env, ready=ready)
