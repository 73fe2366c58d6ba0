"""A model from the Hugging Face Hub: deployed by its name, fetched visibly, shared, and resumed after a death."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpustack.testing.hub import FakeHub
from support.engine import InstalledEngine
from support.running import Running, a_port_range, eventually, gpustack

pytestmark = pytest.mark.xdist_group("e2e-hub")

TOKEN = "hf_a-secret-of-the-user"


@pytest.fixture(scope="module")
def hub(tiny_gguf: Path, tiny_embedding_gguf: Path, tiny_hf: Path) -> Iterator[FakeHub]:
    """A hub with a chat model in two quantisations, a smaller one, and one that no engine here can run."""
    with FakeHub() as fake:
        fake.faults.trusted.add(TOKEN)
        chat = tiny_gguf.read_bytes()
        fake.add(
            "org/tiny-GGUF",
            {"tiny-Q4_K_M.gguf": chat, "tiny-Q8_0.gguf": chat + b"\0" * 32, "README.md": b"hi"},
        )
        fake.add("org/slow-GGUF", {"slow.gguf": chat + b"\0" * 64})
        fake.add("org/embedding-GGUF", {"embedding.gguf": tiny_embedding_gguf})
        fake.add("org/gated-GGUF", {"gated.gguf": chat})
        yield fake


@pytest.fixture(scope="module")
def stack(place: Path, engine: InstalledEngine, hub: FakeHub) -> Iterator[Running]:
    """A GPUStack that takes our hub for the real one."""
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(8)]
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    with gpustack(place / "hub data", place / "hub home", flags, env=env) as running:
        yield running


@pytest.fixture(autouse=True)
def _well(hub: FakeHub) -> Iterator[None]:
    yield
    hub.faults.rate = None


def instances(stack: Running, model: str) -> list[dict[str, Any]]:
    with stack.admin() as client:
        items: list[dict[str, Any]] = client.get("/v2/model-instances").json()["items"]
    return [each for each in items if each["model_name"] == model]


def files(stack: Running, repo: str) -> list[dict[str, Any]]:
    with stack.admin() as client:
        items: list[dict[str, Any]] = client.get("/v2/model-files").json()["items"]
    return [each for each in items if each["huggingface_repo_id"] == repo]


def chat(stack: Running, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with stack.admin() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_repository_is_deployed_by_its_name_and_chats(stack: Running, hub: FakeHub) -> None:
    hub.faults.rate = 2e6
    done = stack.cli("deploy", "hf:org/tiny-GGUF", "--replicas", "2")
    assert "Deploying tiny-GGUF from org/tiny-GGUF" in done.stdout
    assert re.search(r"downloading: .* of 3\.2 MiB, .*MiB/s", done.stdout), done.stdout
    assert chat(stack, "tiny-GGUF")

    both = instances(stack, "tiny-GGUF")
    commit = hub.repositories["org/tiny-GGUF"].names["main"]
    assert {each["resolved_revision"] for each in both} == {commit}
    assert {Path(each["resolved_path"]).name for each in both} == {"tiny-Q4_K_M.gguf"}
    (file,) = files(stack, "org/tiny-GGUF")
    assert file["state"] == "ready"
    assert file["downloaded_size"] == file["size"] == Path(both[0]["resolved_path"]).stat().st_size
    listed = stack.cli("ls").stdout
    assert "org/tiny-GGUF" in listed
    # Both copies load what was fetched once.
    assert sum(each.method == "GET" for each in hub.requests("/", at="content")) == 2, (
        "its head, and all of it"
    )
    assert not [each for each in hub.requests(at="content") if "Authorization" in each.headers]


def test_the_token_is_in_no_log_no_argument_and_no_environment_of_an_engine(
    stack: Running, hub: FakeHub
) -> None:
    if not instances(stack, "tiny-GGUF"):
        stack.cli("deploy", "hf:org/tiny-GGUF", "--replicas", "2")
    assert [each for each in hub.requests(at="hub") if each.headers.get("Authorization") == f"Bearer {TOKEN}"]
    for log in (stack.data_dir / "log").rglob("*"):
        assert not log.is_file() or TOKEN not in log.read_text(errors="replace"), log
    engines = {each["pid"] for each in instances(stack, "tiny-GGUF")}
    for process in stack.own_processes():
        assert TOKEN not in " ".join(process.cmdline())
        if process.pid in engines:
            assert TOKEN not in str(process.environ())
    assert TOKEN not in str(files(stack, "org/tiny-GGUF"))


def test_a_download_goes_on_where_a_killed_worker_left_it(stack: Running, hub: FakeHub) -> None:
    hub.faults.rate = 4e5
    stack.cli("deploy", "hf:org/slow-GGUF", "--name", "slow", "--no-wait")
    blobs = stack.data_dir / "cache" / "huggingface" / "models--org--slow-GGUF" / "blobs"

    def partly() -> bool:
        (one,) = instances(stack, "slow") or [{"download_progress": 0}]
        return float(one["download_progress"]) > 20

    eventually(partly, "a fifth of the files is here", seconds=60)
    before = max(each.stat().st_size for each in blobs.glob("*.incomplete"))
    worker = psutil.Process(stack.state()["children"]["worker"]["pid"])
    with stack.admin() as client:
        engines = {each["pid"] for each in client.get("/v2/model-instances").json()["items"]}
    downloads = [each for each in worker.children() if each.pid not in engines]
    worker.kill()
    # They end with their worker, but not in the same moment: at full speed one might be done before.
    psutil.wait_procs(downloads, timeout=30)
    hub.faults.rate = None
    eventually(
        lambda: [each["state"] for each in instances(stack, "slow")] == ["running"], "it runs", seconds=90
    )
    assert chat(stack, "slow")
    digest = next(each.name for each in blobs.iterdir() if "." not in each.name)
    starts = [each.headers["Range"] for each in hub.requests(digest, at="content")]
    assert int(starts[-1].removeprefix("bytes=").partition("-")[0]) >= before
    assert not list(blobs.glob("*.incomplete"))


def test_what_was_fetched_starts_without_the_hub(stack: Running, hub: FakeHub) -> None:
    stack.cli("deploy", "hf:org/embedding-GGUF", "--name", "embedding")
    stack.cli("rm", "embedding")
    eventually(lambda: not instances(stack, "embedding"), "it is gone", seconds=60)
    hub.faults.errors = 10_000
    try:
        done = stack.cli("deploy", "hf:org/embedding-GGUF", "--name", "embedding")
        assert "embedding is running" in done.stdout
    finally:
        hub.faults.errors = 0


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("hf:org/nothing", "has no repository org/nothing, or it is private"),
        ("hf:org/tiny-GGUF@v9", "org/tiny-GGUF has no branch, tag or commit 'v9'"),
        (
            "hf:org/tiny-GGUF:Q2_K",
            "org/tiny-GGUF has no file like 'Q2_K'; it has: tiny-Q4_K_M.gguf, tiny-Q8_0.gguf",
        ),
    ],
)
def test_a_source_that_is_not_there_fails_with_one_line(stack: Running, source: str, line: str) -> None:
    done = stack.cli("deploy", source, "--name", "wrong", check=False)
    stack.cli("rm", "wrong", check=False)
    assert done.returncode == 1
    assert line in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
