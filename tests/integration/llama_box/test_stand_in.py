"""llama-box's whole path on one machine: fetched, installed, started with the backend's command lines, asked.

Its releases cannot be reached here, so that the archive is a stand-in; see ``support.llama_box``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from gpustack.plugin import GpuDevice, Host, LaunchRequest, Member, Platform
from gpustack.worker.artifacts import ArtifactInstaller
from gpustack.worker.facts import read_facts
from gpustack_backends import LlamaBox
from gpustack_backends.llama_box.settings import LlamaBoxSettings
from support.archives import ArchiveServer, archive_server
from support.engine import InstalledEngine, RunningEngine, running
from support.llama_box import DYNAMIC, STATIC, VERSION, serve_releases
from support.running import eventually, free_ports

HERE = Platform(system="linux", machine=os.uname().machine)


@pytest.fixture
def releases(engine: InstalledEngine) -> Iterator[ArchiveServer]:
    with archive_server() as server:
        serve_releases(server, engine)
        yield server


def backend(tmp_path: Path, *, static: bool = False) -> LlamaBox:
    host = Host(log=logging.getLogger("test"), data_dir=tmp_path, bin_dir=tmp_path)
    return LlamaBox(LlamaBoxSettings(disable_dynamic_link_llama_box=static), host)


def installed(tmp_path: Path, releases: ArchiveServer, *, static: bool = False) -> Path:
    installer = ArtifactInstaller(bin_dir=tmp_path / "bin", data_dir=tmp_path, tools_url=releases.url)
    made = backend(tmp_path, static=static)
    command = asyncio.run(installer.ensure(made.name, made.artifact(VERSION, HERE)))
    assert installer.installed() == {"llama-box": [VERSION]}
    return command


def request(command: Path, model: Path, **more) -> LaunchRequest:
    return LaunchRequest(
        instance_name="tiny-1",
        model_name="tiny",
        model=read_facts(model),
        command=str(command),
        version=VERSION,
        host="127.0.0.1",
        model_path=str(model),
        **{"port": free_ports(1)[0], **more},
    )


class Started:
    """Starts what a plan says, with nothing of our environment but what the plan adds to it."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def __call__(self, plan, port: int) -> RunningEngine:
        env = [f"{name}={value}" for name, value in plan.env.items()]
        argv = ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", *env, *plan.argv]
        return self._stack.enter_context(running(argv, port, self._folder / f"{port}.log"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    with ExitStack() as stack:
        yield Started(stack, tmp_path)


CHAT = {"messages": [{"role": "user", "content": "Tell me of cats."}], "max_tokens": 8, "ignore_eos": True}


@pytest.mark.parametrize("static", [False, True])
def test_a_model_is_served_by_what_was_fetched(tmp_path, releases, start, tiny_gguf, static) -> None:
    command = installed(tmp_path, releases, static=static)
    asked = request(command, tiny_gguf, parameters=("--ctx-size=512", "--parallel 2"))

    server = start(backend(tmp_path).launch(asked), asked.port)
    server.wait_ready()

    *events, end = server.post(
        "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert end == "[DONE]"
    assert json.loads(events[-1])["usage"]["completion_tokens"] == 8
    assert [each["id"] for each in json.loads(server.get("/v1/models"))["data"]] == ["tiny"]
    slots = json.loads(server.get("/slots"))
    assert [slot["n_ctx"] for slot in slots] == [512, 512], "requests share the context"
    assert command.parent.name == f"{STATIC if static else DYNAMIC}_{VERSION}"
    assert server.stop() == 0


def test_vectors_and_ranks(tmp_path, releases, start, tiny_embedding_gguf, tiny_reranker_gguf) -> None:
    command = installed(tmp_path, releases)
    embedding, reranker = request(command, tiny_embedding_gguf), request(command, tiny_reranker_gguf)
    one, other = (start(backend(tmp_path).launch(each), each.port) for each in (embedding, reranker))
    one.wait_ready()
    other.wait_ready()

    vectors = one.post("/v1/embeddings", {"model": "tiny", "input": ["one", "import " * 1500]})
    ranks = other.post("/v1/rerank", {"model": "tiny", "query": "a file", "documents": ["one", "two"]})

    assert [len(each["embedding"]) for each in vectors["data"]] == [128, 128]
    assert sorted(each["index"] for each in ranks["results"]) == [0, 1]


def test_the_leader_finds_the_gpus_that_others_lend(tmp_path, releases, start, tiny_gguf) -> None:
    """What crosses the network is the stand-in's own word; the addresses and the order are llama-box's."""
    command = installed(tmp_path, releases)
    device = GpuDevice(uuid="1", index=0, vendor="v", name="G", memory_total=1 << 30, type="cuda")
    ports = free_ports(3)
    group = tuple(
        Member(number=number, host="127.0.0.1", ports=(port,), devices=(device,))
        for number, port in enumerate(ports)
    )
    asked = request(command, tiny_gguf, members=group, devices=(device,))
    made = backend(tmp_path)

    lenders = [start(made.launch_member(replace(asked, member=number)), ports[number]) for number in (1, 2)]
    for each in lenders:
        eventually(lambda each=each: "rpc server listening" in each.log.read_text(), "it lends its GPU")
    leader = start(made.launch_member(asked), asked.port)
    leader.wait_ready()

    assert leader.post("/v1/chat/completions", CHAT)["usage"]["completion_tokens"] == 8
    log = leader.log.read_text()
    assert [f"uses the GPU at 127.0.0.1:{port}" in log for port in ports] == [False, True, True]


def test_a_leader_alone_says_whom_it_does_not_reach(tmp_path, releases, start, tiny_gguf) -> None:
    command = installed(tmp_path, releases)
    device = GpuDevice(uuid="1", index=0, vendor="v", name="G", memory_total=1 << 30, type="cuda")
    ports = free_ports(2)
    group = tuple(
        Member(number=number, host="127.0.0.1", ports=(port,), devices=(device,))
        for number, port in enumerate(ports)
    )

    leader = start(backend(tmp_path).launch_member(request(command, tiny_gguf, members=group)), ports[0])

    assert leader.process.wait(20) == 1
    assert f"failed to register RPC device 127.0.0.1:{ports[1]}" in leader.log.read_text()


def test_a_dynamic_build_does_not_start_without_its_library(tmp_path, releases, tiny_gguf) -> None:
    """The stand-in is as strict as the loader, so that the tests above have proven something."""
    command = installed(tmp_path, releases)

    done = subprocess.run(
        [command, "--model", tiny_gguf],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )

    assert done.returncode == 1
    assert "error while loading shared libraries" in done.stderr
