"""One node of a private Ray, as a program that runs in Ray's own environment and needs nothing of GPUStack.

    python ray_node.py '{"ray": "/…/bin/ray", "head": true, …}'

The description is :class:`gpustack.worker.runners.ray.Node` as JSON. On the head the engine's command line, ``engine``,
is started once all nodes are there. It ends when Ray or the engine does; whoever started it ends the rest.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

#: Seconds in which all nodes have to come.
PATIENCE = 300.0
_FLAGS = {
    "gcs": "--port",
    "client": "--ray-client-server-port",
    "dashboard": "--dashboard-port",
    "node_manager": "--node-manager-port",
    "object_manager": "--object-manager-port",
    "runtime_env_agent": "--runtime-env-agent-port",
    "agent_grpc": "--dashboard-agent-grpc-port",
    "agent_listen": "--dashboard-agent-listen-port",
    "metrics": "--metrics-export-port",
}
#: Bytes for objects that nodes hand to each other; engines hand over little.
_OBJECTS = 1 << 30


def command(node: dict[str, Any]) -> list[str]:
    """Return the command line that starts Ray."""
    where = ["--head"] if node["head"] else [f"--address={node['address']}"]
    ports = [f"{_FLAGS[name]}={port}" for name, port in node["ports"].items()]
    workers = ",".join(map(str, node["worker_ports"]))
    # Where Ray keeps things is the head's to say.
    folder = [f"--temp-dir={node['folder']}"] if node["head"] else []
    return [
        *(node["ray"], "start", "--block", *where, f"--node-ip-address={node['host']}", *ports),
        *(f"--worker-port-list={workers}", "--disable-usage-stats", *folder),
        *(f"--num-gpus={node['gpus']}", f"--num-cpus={2 * max(1, node['gpus'])}"),
        f"--object-store-memory={_OBJECTS}",
    ]


def _say(line: str) -> None:
    sys.stdout.write(f"gpustack: {line}\n")
    sys.stdout.flush()


def _wait_for_head(node: dict[str, Any]) -> bool:
    host, _, port = node["address"].rpartition(":")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    _say(f"the head of Ray does not answer at {node['address']}")
    return False


def _wait_for_nodes(node: dict[str, Any]) -> int:
    """Return 0 once all nodes are there: a process of its own, so that what it takes is given back."""
    import ray  # type: ignore[import-not-found,unused-ignore]  # of the environment that this runs in

    deadline = time.monotonic() + PATIENCE
    alive = 0
    while time.monotonic() < deadline:
        try:
            if not ray.is_initialized():
                ray.init(address=node["address"], log_to_driver=False, logging_level="error")
            alive = sum(bool(each["Alive"]) for each in ray.nodes())
        except Exception as error:  # noqa: BLE001  # it comes up, or the time is over
            _say(f"Ray does not answer yet: {error}")
        if alive >= node["nodes"]:
            ray.shutdown()
            return 0
        time.sleep(0.3)
    _say(f"{alive} of {node['nodes']} nodes have joined Ray within {PATIENCE:.0f} s")
    return 1


def main(argv: list[str]) -> int:
    """Run the node until it or its engine ends."""
    node = json.loads(argv[-1])
    if argv[0] == "--wait":
        return _wait_for_nodes(node)
    if not node["head"] and not _wait_for_head(node):
        return 1
    children = {"Ray": subprocess.Popen(command(node))}
    if node["head"]:
        waiting = subprocess.Popen([sys.executable, "-P", __file__, "--wait", argv[-1]])
        while waiting.poll() is None and children["Ray"].poll() is None:
            time.sleep(0.1)
        if waiting.poll() != 0:
            _say("Ray did not come up")
            return 1
        _say(f"all {node['nodes']} nodes are there; starting the engine")
        children["the engine"] = subprocess.Popen(node["engine"])
    pids = {child.pid: name for name, child in children.items()}
    while True:
        pid, status = os.wait()
        if pid in pids:
            code = os.waitstatus_to_exitcode(status)
            _say(f"{pids[pid]} ended with {code}")
            return code if code > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
