"""vLLM for real, on the processor: installed by pipx from a folder of wheels, served, killed, ended.

`make test-engines` runs this; it takes gigabytes of disk and memory, and minutes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from support.engine_packages import BUILD, embedding_model, from_wheels
from support.running import Running, a_port_range, eventually, gpustack
from support.tiny_models import make_tiny_hf

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("vllm on the processor"),
]

_SMALL = (
    "-p",
    "--max-num-seqs=4",
    "-p",
    "--enforce-eager",
    "-p",
    "--dtype=float32",
    "-p",
    "--max-model-len=1024",
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Running]:
    """A GPUStack of its own, whose package index also is a folder with the wheel."""
    place = Path(tempfile.mkdtemp(prefix="gpustack-engines-"))
    place.chmod(0o755)
    flags = ["--service-port-range", a_port_range(8)]
    try:
        with gpustack(place / "data", place / "home", flags, env=from_wheels()) as running:
            yield running
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def chat(stack: Running) -> str:
    """The name of a chat model that vLLM serves, once it does."""
    began = time.monotonic()
    deploy(stack, make_tiny_hf(), "tiny")
    print(f"installed, started and answering after {time.monotonic() - began:.1f} s")
    return "tiny"


@pytest.fixture(scope="module")
def vectors(stack: Running, chat: str) -> str:
    """The name of an embedding model that vLLM serves beside the other."""
    began = time.monotonic()
    deploy(stack, embedding_model(), "minilm", small=False)
    print(f"a second one answers after {time.monotonic() - began:.1f} s")
    return "minilm"


def deploy(stack: Running, path: Path, name: str, *more: str, small: bool = True) -> None:
    flags = ("--backend", "vllm", "--backend-version", BUILD, *(_SMALL if small else _SMALL[:6]), *more)
    stack.cli("deploy", str(path), "--name", name, *flags, timeout=1500)


def instance(stack: Running, name: str) -> dict[str, Any]:
    with stack.admin() as admin:
        items = admin.get("/v2/model-instances").raise_for_status().json()["items"]
    return next(each for each in items if each["model_name"] == name)


def engine_processes(stack: Running, name: str) -> list[psutil.Process]:
    leader = instance(stack, name)["pid"]
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ask(stack: Running, path: str, body: dict[str, Any]) -> Any:
    with stack.admin() as admin:
        answer = admin.post(path, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def test_it_is_installed_by_pipx_in_the_version_that_was_asked_for(stack: Running, chat: str) -> None:
    link = stack.data_dir / "bin" / f"vllm_{BUILD}"
    assert link.is_symlink(), [*link.parent.iterdir()]
    assert instance(stack, chat)["backend_version"] == BUILD
    size = sum(process.memory_info().rss for process in engine_processes(stack, chat))
    print(f"{len(engine_processes(stack, chat))} processes, {size / 1e9:.2f} GB")


def test_chat_is_answered_with_usage(stack: Running, chat: str) -> None:
    answer = ask(
        stack,
        "/v1/chat/completions",
        {
            "model": chat,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 8,
            "temperature": 0,
        },
    )
    assert answer["model"] == chat
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["prompt_tokens"] > 0


def test_a_stream_ends_with_usage_though_nobody_asked_for_it(stack: Running, chat: str) -> None:
    body = {"model": chat, "prompt": "one two", "max_tokens": 6, "stream": True, "temperature": 0}
    port = instance(stack, chat)["port"]
    lines = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60).text.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 6

    with stack.admin() as admin, admin.stream("POST", "/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200
        text = "".join(answer.iter_text())
    assert text.rstrip().endswith("data: [DONE]")
    assert text.count('"text"') >= 6


def test_embeddings_have_meaning(stack: Running, vectors: str) -> None:
    words = ["cat", "kitten", "stocks"]
    answer = ask(stack, "/v1/embeddings", {"model": vectors, "input": words})
    cat, kitten, stocks = (each["embedding"] for each in answer["data"])
    near, far = cosine(cat, kitten), cosine(cat, stocks)
    print(f"cos(cat, kitten) {near:.3f}, cos(cat, stocks) {far:.3f}")
    # As transformers computes them with the mean of the last layer.
    assert near == pytest.approx(0.788, abs=0.01)
    assert far == pytest.approx(0.203, abs=0.01)


def test_documents_are_ranked_by_meaning(stack: Running, vectors: str) -> None:
    documents = ["The bank raised its rates.", "A kitten drinks milk.", "Trains run late."]
    answer = ask(
        stack, "/v1/rerank", {"model": vectors, "query": "What do young cats drink?", "documents": documents}
    )
    best = max(answer["results"], key=lambda each: each["relevance_score"])
    assert best["index"] == 1, answer


def test_metrics_are_those_that_are_mapped(stack: Running, chat: str) -> None:
    from gpustack_backends import Vllm

    port = instance(stack, chat)["port"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    told = {
        line.split("{")[0].split(" ")[0] for line in text.splitlines() if line and not line.startswith("#")
    }
    histograms = {name.removesuffix("_count") for name in told if name.endswith("_count")}
    found = {ours for own, ours in Vllm.metrics(Vllm.__new__(Vllm)).items() if own in told | histograms}
    wanted = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio", "prompt_tokens"}
    wanted |= {
        "generation_tokens",
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_success",
    }
    assert wanted <= found, (wanted - found, sorted(told))


def test_explain_says_why_it_runs_there(stack: Running, chat: str) -> None:
    said = stack.cli("explain", chat).stdout
    assert "with vllm 0.32.0" in said, said


def test_a_killed_workers_engine_is_adopted(stack: Running, chat: str) -> None:
    before, killed = instance(stack, chat)["pid"], stack.state()["children"]["worker"]["pid"]
    log = stack.data_dir / "log" / "worker.log"
    said = log.read_text().count("found its engine running")
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    eventually(
        lambda: log.read_text().count("found its engine running") > said, "engines are adopted", seconds=120
    )
    print(f"adopted {time.monotonic() - began:.1f} s after kill -9 of the worker")
    assert stack.state()["children"]["worker"]["pid"] != killed
    eventually(lambda: instance(stack, chat)["state"] == "running", "it is served", seconds=60)
    assert instance(stack, chat)["pid"] == before
    assert psutil.pid_exists(before)
    test_chat_is_answered_with_usage(stack, chat)


def test_a_damaged_model_is_told_of_in_one_line(stack: Running, chat: str, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(make_tiny_hf(), stack.home / "bad"))
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(
        json.dumps(config | {"model_type": "no_such_type", "architectures": ["NoSuchForCausalLM"]})
    )
    done = stack.cli(
        *("deploy", str(bad), "--name", "bad", "--backend", "vllm", "--backend-version", BUILD, *_SMALL),
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    print(done.stderr)
    said = next(line for line in done.stderr.splitlines() if "bad-" in line)
    assert "no_such_type" in said or "NoSuchForCausalLM" in said, done.stderr
    stack.cli("rm", "bad", "--force")


def test_the_whole_tree_ends_with_the_model(stack: Running, chat: str, vectors: str) -> None:
    processes = [*engine_processes(stack, chat), *engine_processes(stack, vectors)]
    assert len(processes) > 2
    stack.cli("rm", chat, vectors, "--force")
    eventually(
        lambda: (
            not [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        ),
        "all of its processes are gone",
        seconds=60,
    )
