"""The real engine on tiny models, started with the very command lines that the backend gives."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpustack.plugin import LaunchRequest, ModelFacts
from gpustack.worker.probe import fetch
from support.engine import InstalledEngine, RunningEngine, llama_cpp_backend, running
from support.running import eventually, free_ports

Start = Callable[..., RunningEngine]


def command_line(engine: InstalledEngine, model: Path, port: int, category: str, parameters: tuple[str, ...]):
    facts = ModelFacts(
        format="gguf",
        path=str(model),
        weight_bytes=model.stat().st_size,
        architecture="llama" if category == "llm" else "bert",
        context_length=2048,
        categories=(category,),
    )
    request = LaunchRequest(
        instance_name="tiny-1",
        model_name="org/tiny:1",
        model=facts,
        command=str(engine.command),
        version=engine.version,
        host="127.0.0.1",
        port=port,
        model_path=str(model),
        parameters=parameters,
    )
    return llama_cpp_backend(engine.data_dir).launch(request).argv


@pytest.fixture
def start(engine: InstalledEngine, tmp_path: Path) -> Iterator[Start]:
    """Return what starts the engine on a model and waits until it answers."""
    with ExitStack() as stack:

        def run(model: Path, *parameters: str, category: str = "llm") -> RunningEngine:
            port = free_ports(1)[0]
            argv = command_line(engine, model, port, category, parameters)
            server = stack.enter_context(running(argv, port, tmp_path / f"{port}.log"))
            server.wait_ready()
            return server

        yield run


def test_chat_streams_with_usage(start: Start, tiny_gguf: Path) -> None:
    server = start(tiny_gguf)

    assert [each["id"] for each in json.loads(server.get("/v1/models"))["data"]] == ["org/tiny:1"]
    *events, end = server.post(
        "/v1/chat/completions",
        {
            "model": "org/tiny:1",
            "messages": [{"role": "user", "content": "Tell me of cats."}],
            "max_tokens": 8,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )
    assert end == "[DONE]"
    last = json.loads(events[-1])
    assert last["usage"]["completion_tokens"] == 8
    assert len(events) > 8, "one event a token"
    assert "llamacpp:tokens_predicted_total 8" in server.get("/metrics")


def test_a_request_gets_the_context_that_was_asked_for(start: Start, tiny_gguf: Path) -> None:
    server = start(tiny_gguf, "--ctx-size=512", "--parallel=2")

    slots = json.loads(server.get("/slots"))

    assert [slot["n_ctx"] for slot in slots] == [512, 512]


def test_embeddings_are_the_same_for_the_same_text_only(start: Start, tiny_embedding_gguf: Path) -> None:
    server = start(tiny_embedding_gguf, category="embedding")
    # Longer than llama.cpp's own batch.
    texts = ["import a module", "import a module", "a list of names", "import " * 1500]

    answer = server.post("/v1/embeddings", {"model": "tiny", "input": texts})

    same, again, other, long = (each["embedding"] for each in answer["data"])
    assert len(same) == len(long) == 128
    assert cosine(same, again) > 0.9999
    assert cosine(same, other) < 0.999
    assert answer["usage"]["prompt_tokens"] > 1500


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_rerank_scores_every_document(start: Start, tiny_reranker_gguf: Path) -> None:
    server = start(tiny_reranker_gguf, category="reranker")

    answer = server.post(
        "/v1/rerank", {"model": "tiny", "query": "a file", "documents": ["one", "two", "three"]}
    )

    assert sorted(each["index"] for each in answer["results"]) == [0, 1, 2]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_also_while_it_generates(start: Start, tiny_gguf: Path, how: int) -> None:
    server = start(tiny_gguf)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "ignore_eos": True, "stream": True})
    client = subprocess.Popen(
        ["curl", "-sN", "-d", body, f"{server.url}/v1/chat/completions"], stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    with client:
        client.stdout.readline()
        started = time.monotonic()

        status = server.stop(how)

        assert time.monotonic() - started < 2
        client.kill()
    assert status == 0


def test_its_last_word_is_where_it_serves(start: Start, tiny_gguf: Path) -> None:
    server = start(tiny_gguf)

    # The engine answers its probe from another thread than the one that says so in the log.
    expected = f"gpustack-llama-server: serving on http://127.0.0.1:{server.port}"
    eventually(lambda: expected in server.log.read_text(), f"'{expected}' in the log")


def run_launcher(engine: InstalledEngine, *arguments: str | Path) -> tuple[int, list[str]]:
    answer = subprocess.run(
        [engine.command, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in answer.stderr
    return answer.returncode, answer.stderr.splitlines()


def test_a_truncated_model_ends_with_one_clear_line(engine, tiny_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:200_000])

    status, lines = run_launcher(engine, "--model", cut, "--port", str(free_ports(1)[0]))

    assert status == 1
    # llama.cpp writes its log from a thread of its own, which may have the last word, or half of a line before ours.
    expected = f"gpustack-llama-server: llama.cpp cannot serve {cut}; the lines around this one say why"
    assert any(expected in line for line in lines), lines


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (
            ["--model", "/nonexistent.gguf"],
            1,
            "model /nonexistent.gguf cannot be read: No such file or directory",
        ),
        (["--model", "/etc/passwd"], 1, "model /etc/passwd is not a GGUF file"),
        ([], 2, "--model is missing (see gpustack-llama-server --help)"),
        (["--fly"], 2, "unrecognized arguments: --fly (see"),
        (["--model"], 2, "expected one argument (see"),
        (["--model", "TINY", "--threads", "many"], 2, "--threads: 'many' is not a whole number (see"),
        (["--model", "TINY", "--cache-type-k", "q3"], 2, "--cache-type-k: 'q3' is none of f32, f16"),
        (
            ["--model", "TINY", "--pooling", "deep"],
            2,
            "--pooling: 'deep' is none of cls, last, mean, none, rank",
        ),
        (["--model", "TINY", "--lora", "/nonexistent"], 2, "--lora: /nonexistent is not a readable file"),
        (["--model", "TINY", "--chat-template-kwargs", "[]"], 2, "--chat-template-kwargs: not a JSON object"),
        (["--model", "TINY", "--port", "99999"], 2, "--port: 99999 is not between 0 and 65535"),
    ],
)
def test_bad_input_is_one_line(engine, tiny_gguf: Path, arguments, status, said) -> None:
    code, lines = run_launcher(engine, *(str(tiny_gguf) if each == "TINY" else each for each in arguments))

    assert code == status
    assert len(lines) == 1
    assert lines[0].startswith("gpustack-llama-server: ")
    assert said in lines[0]


def test_a_taken_port_is_named(start: Start, engine, tiny_gguf: Path) -> None:
    port = start(tiny_gguf).port

    assert run_launcher(engine, "--model", tiny_gguf, "--port", str(port)) == (
        1,
        [f"gpustack-llama-server: port {port} on 127.0.0.1 is taken"],
    )


def test_many_flags_at_once(start: Start, tiny_gguf: Path) -> None:
    """Each of these sets something in llama.cpp that was of the wrong type before it was converted."""
    server = start(
        tiny_gguf,
        *(
            "--seed 7",
            "--threads 2",
            "-tb",
            "1",
            "--flash-attn",
            "-ctk q8_0",
            "--cache-type-v=q8_0",
            "--mlock",
        ),
        *(
            "--temp=0",
            "--top-k",
            "1",
            "--tensor-split 1,2",
            "--gpu-layers all",
            "--split-mode layer",
            "--no-warmup",
        ),
        *("--jinja", '--chat-template-kwargs={"a": [1, "b c"]}', "--reasoning-format none", "--cache-ram 0"),
        *(
            "--sleep-idle-seconds",
            "-1",
            "--context-shift",
            "--batch-size=256",
            "-ub 128",
            "--numa distribute",
        ),
    )
    ask = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "ignore_eos": True}

    assert "sees no GPU here: everything runs on the CPU" in server.log.read_text()
    first, second = (server.post("/v1/chat/completions", ask)["choices"][0]["message"] for _ in range(2))

    assert first == second


def test_how_full_its_cache_is_can_be_read_while_it_answers(
    start: Start, engine: InstalledEngine, tiny_gguf: Path
) -> None:
    server = start(tiny_gguf, "--parallel", "2", "--ctx-size", "512")
    backend = llama_cpp_backend(engine.data_dir)

    def used() -> float | None:
        answer = asyncio.run(fetch(server.port, backend.load_path, timeout=5))
        assert answer is not None
        found: float | None = backend.kv_cache_use(answer)
        return found

    assert used() == 0
    asked = {"prompt": "one two three", "max_tokens": 400, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(server.post, "/v1/completions", asked)
        eventually(lambda: (used() or 0) > 0.02, "some of the cache is in use")
        answering.result()
    assert used() == 0
