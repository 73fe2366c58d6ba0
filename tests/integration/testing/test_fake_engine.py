"""The fake engine answers as OpenAI's clients expect, and misbehaves as it is told."""

from __future__ import annotations

import base64
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from gpustack.testing.fakes.engine import Behaviour, FakeEngine

Make = Callable[..., tuple[FakeEngine, openai.OpenAI]]
HELLO: Any = [{"role": "user", "content": "hello dear engine"}]


@pytest.fixture
def engine() -> Iterator[Make]:
    """Make engines, each with a client of it, that end with the test."""
    with ExitStack() as stack:

        def make(*parameters: str) -> tuple[FakeEngine, openai.OpenAI]:
            made = stack.enter_context(FakeEngine(Behaviour.parse(parameters), model="tiny"))
            http = stack.enter_context(httpx.Client(trust_env=False, timeout=5))
            return made, openai.OpenAI(
                base_url=f"{made.url}/v1", api_key="x", max_retries=0, http_client=http
            )

        yield make


def test_chat_repeats_what_it_was_asked(engine: Make) -> None:
    made, client = engine()

    answer = client.chat.completions.create(model="tiny", messages=HELLO)

    assert answer.choices[0].message.content == "You said: hello dear engine"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        3,
        5,
        8,
    )
    assert [path for path, _ in made.requests] == ["/v1/chat/completions"]


def test_chat_is_streamed_word_by_word_with_usage(engine: Make) -> None:
    _, client = engine("--answer=one two three")

    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    texts = [
        each.choices[0].delta.content for each in chunks if each.choices and each.choices[0].delta.content
    ]
    assert texts == ["one", " two", " three"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_an_answer_is_cut_at_the_limit(engine: Make) -> None:
    _, client = engine("--answer=one two three")

    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)

    assert answer.choices[0].message.content == "one two"
    assert answer.choices[0].finish_reason == "length"


def test_completions_whole_and_streamed(engine: Make) -> None:
    _, client = engine("--answer=one two")

    whole = client.completions.create(model="tiny", prompt="go on")
    pieces = [
        each.choices[0].text for each in client.completions.create(model="tiny", prompt="x", stream=True)
    ]

    assert whole.choices[0].text == "one two"
    assert "".join(pieces) == "one two"


def test_embeddings_are_directions_of_their_texts(engine: Make) -> None:
    made, client = engine("--embedding-size=16")

    one, other, again = (
        each.embedding for each in client.embeddings.create(model="tiny", input=["a", "b", "a"]).data
    )
    answer = httpx.post(
        f"{made.url}/v1/embeddings", json={"model": "tiny", "input": "a", "encoding_format": "base64"}
    )
    coded = struct.unpack("<16f", base64.b64decode(answer.json()["data"][0]["embedding"]))

    assert len(one) == 16
    assert one == again != other
    assert sum(each * each for each in one) == pytest.approx(1, abs=1e-5)
    assert coded == pytest.approx(one, abs=1e-6)


def test_models_and_metrics(engine: Make) -> None:
    made, client = engine()
    client.chat.completions.create(model="tiny", messages=HELLO)

    assert [each.id for each in client.models.list()] == ["tiny"]
    assert "fake:generation_tokens_total 5" in httpx.get(f"{made.url}/metrics").text


def test_speed_and_time_to_first_token(engine: Make) -> None:
    _, client = engine("--answer=a b c d e", "--tokens-per-second=20", "--time-to-first-token=0.3")
    began, times = time.monotonic(), []

    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    times.extend(time.monotonic() - began for chunk in stream if chunk.choices[0].delta.content)

    assert times[0] >= 0.3
    assert times[4] - times[0] >= 0.15
    assert times[4] >= 0.5


def test_a_part_of_the_requests_fails_and_always_the_same(engine: Make) -> None:
    def statuses(seed: int) -> list[int]:
        made, _ = engine("--fail-rate=0.5", "--fail-status=429", f"--seed={seed}")
        with httpx.Client(base_url=made.url) as client:
            return [
                client.post("/v1/chat/completions", json={"messages": HELLO}).status_code for _ in range(20)
            ]

    assert set(statuses(1)) == {200, 429}
    assert statuses(1) == statuses(1) != statuses(2)


def test_it_hangs_from_a_request_on(engine: Make) -> None:
    made, _ = engine("--hang-from=2")
    body = {"messages": HELLO}

    assert httpx.post(f"{made.url}/v1/chat/completions", json=body).status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{made.url}/v1/chat/completions", json=body, timeout=0.3)
    assert httpx.get(f"{made.url}/health").status_code == 200


def test_a_stream_breaks_off(engine: Make) -> None:
    _, client = engine("--answer=a b c d", "--cut-after=2")
    seen = []

    def read() -> None:
        stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        seen.extend(chunk.choices[0].delta.content for chunk in stream)

    with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):
        read()
    assert seen == ["", "a", " b"]


def test_it_loads_for_a_while_or_for_ever(engine: Make) -> None:
    slow, _ = engine("--ready-after=0.3")
    never, _ = engine("--ready-after=-1")

    assert httpx.get(f"{slow.url}/health").status_code == 503
    assert httpx.post(f"{never.url}/v1/completions", json={"prompt": "x"}).status_code == 503
    time.sleep(0.35)
    assert httpx.get(f"{slow.url}/health").status_code == 200
    assert httpx.get(f"{never.url}/health").status_code == 503


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/chat/completions", b"no json", 400),
        ("/v1/chat/completions", b"[]", 400),
        ("/v1/chat/completions", b'{"messages": []}', 400),
        ("/v1/completions", b"{}", 400),
        ("/v1/embeddings", b"{}", 400),
        ("/v1/nothing", b"{}", 404),
    ],
)
def test_bad_requests_are_told(engine: Make, path: str, content: bytes, status: int) -> None:
    made, _ = engine()

    answer = httpx.post(made.url + path, content=content)

    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ("--no-such", "no parameter of the fake engine"),
        ("nonsense", "no parameter of the fake engine"),
        ("--fail-rate=2", "from 0 to 1"),
        ("--fail-rate=nan", "needs a number"),
        ("--fail-status=200", "from 400 to 599"),
        ("--tokens-per-second=-1", "must not be negative"),
        ("--tokens-per-second", "needs a value"),
        ("--crash-at=1.5", "needs a number"),
        ("--ignore-sigterm=maybe", "true or false"),
        ("--embedding-size=0", "from 1 to 65536"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(parameter: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as told:
        Behaviour.parse([parameter])
    assert "\n" not in str(told.value)


# As a process -------------------------------------------------------------------------------------------------


def started(*parameters: str) -> tuple[subprocess.Popen[str], str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "gpustack.testing.fakes.engine", "--port", str(port), *parameters]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
    return process, f"http://127.0.0.1:{port}"


def ended(process: subprocess.Popen[str]) -> int:
    with process:
        process.terminate()
        return process.wait(5)


def test_the_process_crashes_in_the_middle_of_a_request() -> None:
    process, url = started("--crash-at=2")
    with process, httpx.Client(base_url=url) as client:
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200

        with pytest.raises(httpx.TransportError):
            client.post("/v1/completions", json={"prompt": "x"})

        assert process.wait(5) == 134


def test_the_process_ends_when_it_is_asked_to() -> None:
    process, _ = started()

    assert ended(process) == -15


def test_the_process_does_not_end_when_it_is_told_not_to() -> None:
    process, url = started("--ignore-sigterm", "--served-model-name", "stubborn")
    with process:
        process.terminate()
        time.sleep(0.2)
        models = httpx.get(f"{url}/v1/models").json()
        process.kill()

    assert json.dumps(models).count("stubborn") == 1


def test_the_command_line_tells_what_is_wrong() -> None:
    command = [sys.executable, "-m", "gpustack.testing.fakes.engine", "--port", "0", "--fail-rate=7"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert "--fail-rate is a part of the requests" in done.stderr


def test_it_needs_nothing_but_python() -> None:
    """Its file is made into a package that is installed without a network."""
    code = (
        "import runpy, sys; from pathlib import Path;"
        "runpy.run_path(sys.argv[1]); "
        "import sysconfig; site = sysconfig.get_path('purelib');"
        "print([n for n, m in sys.modules.items() if (getattr(m, '__file__', None) or '').startswith(site)])"
    )
    from gpustack.testing.fakes import engine as module

    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(module.__file__)],
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.stdout.strip() == "[]", done.stderr
