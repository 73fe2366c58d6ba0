"""A private Ray: its command lines with the ports of the options, its token, and which Ray is taken."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from gpustack.kit.process import identify
from gpustack.plugin import LaunchPlan, Probe, Refused
from gpustack.worker.runners import ray, ray_node

PORTS = dict(zip((*ray.HEAD, *ray.NODE), range(40001, 40010), strict=True))
HEAD = ray.Node(
    ray="/env/bin/ray",
    head=True,
    host="10.0.0.1",
    address="10.0.0.1:40001",
    ports=PORTS,
    worker_ports=(42001, 42002),
    nodes=2,
    gpus=2,
    folder="/tmp/gpustack-ray-x",
    token_file="/scratch/ray_token",
)
NODE = replace(HEAD, head=False, host="10.0.0.2", ports={each: PORTS[each] for each in ray.NODE})
ENGINE = LaunchPlan(argv=("/env/bin/vllm", "serve"), env={"A": "b"}, ready=Probe(path="/health"))


def said(plan: LaunchPlan) -> dict[str, object]:
    found: dict[str, object] = json.loads(plan.argv[-1])
    return found


def test_the_head_has_every_port_of_the_reference() -> None:
    line = ray_node.command(said(ray.around(ENGINE, HEAD)))

    assert line[:4] == ["/env/bin/ray", "start", "--block", "--head"]
    assert set(line) >= {
        "--port=40001",
        "--ray-client-server-port=40002",
        "--dashboard-port=40003",
        "--node-manager-port=40004",
        "--object-manager-port=40005",
        "--runtime-env-agent-port=40006",
        "--dashboard-agent-grpc-port=40007",
        "--dashboard-agent-listen-port=40008",
        "--metrics-export-port=40009",
        "--worker-port-list=42001,42002",
        "--node-ip-address=10.0.0.1",
        "--num-gpus=2",
        "--disable-usage-stats",
        "--temp-dir=/tmp/gpustack-ray-x",
    }


def test_another_node_joins_the_head_and_opens_no_port_of_one() -> None:
    line = ray_node.command(said(ray.around(ENGINE, NODE)))

    assert "--address=10.0.0.1:40001" in line
    assert "--head" not in line
    assert not any(
        word.startswith(("--port=", "--dashboard-port", "--ray-client", "--temp-dir")) for word in line
    )


def test_only_the_leader_has_an_engine_and_answers_requests() -> None:
    leader, other = ray.around(ENGINE, HEAD), ray.around(ENGINE, NODE)

    assert (said(leader)["engine"], said(other)["engine"]) == (["/env/bin/vllm", "serve"], [])
    assert leader.ready == ENGINE.ready
    assert other.ready == Probe(path="", address=("10.0.0.2", PORTS["node_manager"]))


def test_the_secret_is_in_a_file_and_not_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "scratch" / "ray_token"
    ray.write_token(file, "s3cret")
    plan = ray.around(ENGINE, replace(HEAD, token_file=str(file)))

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert plan.env["RAY_AUTH_MODE"] == "token"
    assert plan.env["RAY_AUTH_TOKEN_PATH"] == str(file)
    assert (plan.env["A"], plan.env["RAY_ADDRESS"]) == ("b", "10.0.0.1:40001")
    assert not any("s3cret" in word for word in (*plan.argv, *plan.env.values()))


def a_ray(folder: Path, says: str) -> Path:
    program = folder / "ray"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    return program


async def test_the_ray_of_the_engines_own_environment_comes_first(tmp_path: Path) -> None:
    environment, links = tmp_path / "env" / "bin", tmp_path / "links"
    for folder in (environment, links):
        folder.mkdir(parents=True)
    (environment / "vllm").touch()
    (links / "vllm_0.32.0").symlink_to(environment / "vllm")
    assert ray.beside(str(links / "vllm_0.32.0")) == ""

    own = a_ray(environment, "ray, version 2.60.0")
    assert ray.beside(str(links / "vllm_0.32.0")) == str(own)
    await ray.check_version(str(own))


async def test_a_ray_sees_no_secret_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_TOKEN", "s3cret")
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    monkeypatch.setattr(ray, "_PATIENCE", 0.3)
    program = tmp_path / "ray"
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nsleep 60 &\necho $! > {tmp_path}/pid\nwait\n")
    program.chmod(0o755)

    with pytest.raises(Refused, match="does not say its version within"):
        await ray.check_version(str(program))

    assert "PATH=" in (seen := (tmp_path / "seen").read_text())
    assert "s3cret" not in seen
    assert identify(int((tmp_path / "pid").read_text())) is None


@pytest.mark.parametrize("says", ["ray, version 2.51.2", "ray, version 1.13.0", "something else", ""])
async def test_a_ray_without_tokens_is_refused(says: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="one that knows tokens"):
        await ray.check_version(str(a_ray(tmp_path, says)))


def test_folders_of_sockets_are_short_and_differ() -> None:
    names = {
        str(ray.folder_of(token, name, attempt) / "ray")
        for token in ("s", "t")
        for name in ("a", "b")
        for attempt in (1, 2)
    }

    assert len(names) == 8
    # A socket of Ray below it takes some 60 bytes of the 107 that the system allows.
    assert max(map(len, names)) < 45
