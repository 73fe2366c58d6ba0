"""An inference engine that speaks the OpenAI API without a model: as fast, as slow and as broken as it is told to be.

    python -m gpustack.testing.fakes.engine --port 8000 --tokens-per-second=20 --fail-rate=0.1

It stands for vLLM, llama.cpp and their like, and is for tests only. It answers chat, completions (both also streamed,
with usage), embeddings, ``/health``, ``/v1/models`` and ``/metrics``; a token is a word.

This file needs nothing but Python: the fake backend makes a package of it, which a worker installs like any engine.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import random
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn, Self

VERSION = "1.0.0"
#: What it calls itself where it is installed.
PACKAGE = "gpustack-fake-engine"


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How it behaves. Each is a parameter: ``tokens_per_second`` is ``--tokens-per-second=N``; times are seconds."""

    #: 0 is as fast as it goes.
    tokens_per_second: float = 0.0
    time_to_first_token: float = 0.0
    #: What it says; otherwise it repeats what it was asked.
    answer: str = ""
    embedding_size: int = 8
    #: This part of the requests, from 0 to 1, is answered with ``fail_status``; the same ones for the same ``seed``.
    fail_rate: float = 0.0
    fail_status: int = 500
    seed: int = 0
    #: From this request on, counted from 1, it takes requests and answers none of them; 0 is never.
    hang_from: int = 0
    #: The process ends at once, in the middle of this request; 0 is never.
    crash_at: int = 0
    #: A stream breaks off after this many tokens; 0 is never.
    cut_after: int = 0
    #: Until then it answers /health with 503, as an engine that loads; below 0 for ever.
    ready_after: float = 0.0
    #: It does not even listen until then.
    listen_after: float = 0.0
    #: It does not end when it is asked to.
    ignore_sigterm: bool = False

    @classmethod
    def parse(cls, parameters: Sequence[str]) -> Behaviour:
        """Read ``--name=value`` and ``--name value``. Raises ValueError with one line for anything else."""
        known = {f"--{each.name.replace('_', '-')}": each for each in fields(cls)}
        values: dict[str, Any] = {}
        words = iter(parameters)
        for word in words:
            flag, equals, text = word.partition("=")
            if (field := known.get(flag)) is None:
                raise ValueError(f"{word!r} is no parameter of the fake engine; they are {', '.join(known)}")
            if field.type == "bool" and not equals:
                text = "true"
            elif not equals and (text := next(words, "")) == "":
                raise ValueError(f"{flag} needs a value, as in {flag}=1")
            values[field.name] = _value(flag, str(field.type), text)
        return cls(**values)._checked()

    def _checked(self) -> Behaviour:
        if not 0 <= self.fail_rate <= 1:
            raise ValueError(f"--fail-rate is a part of the requests, from 0 to 1, not {self.fail_rate:g}")
        if not 400 <= self.fail_status <= 599:
            raise ValueError(f"--fail-status is an HTTP status from 400 to 599, not {self.fail_status}")
        if not 1 <= self.embedding_size <= 65536:
            raise ValueError(f"--embedding-size is from 1 to 65536, not {self.embedding_size}")
        for name in (
            "tokens_per_second",
            "time_to_first_token",
            "listen_after",
            "hang_from",
            "crash_at",
            "cut_after",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative")
        return self


def _value(flag: str, kind: str, text: str) -> object:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{flag} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        number: float = int(text) if kind == "int" else float(text)
    except ValueError:
        raise ValueError(f"{flag} needs a number, not {text!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{flag} needs a number, not {text!r}")
    return number


class FakeEngine:
    """The engine in this process, on a port of its own, while the context is open.

    ``url`` is where it answers, ``requests`` what it was asked: path and JSON body; ``bodies`` are the same as they came,
    byte for byte. What would end the process, ``crash_at``, cuts the connection here.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        model: str = "fake",
        host: str = "127.0.0.1",
        port: int = 0,
        dies: bool = False,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.model = model
        self.requests: list[tuple[str, Any]] = []
        self.bodies: list[bytes] = []
        self.running = self.most_running = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.ending = threading.Event()
        self._dies = dies
        self._lock = threading.Lock()
        self._chance = random.Random(self.behaviour.seed)
        self._ready_at = time.monotonic() + self.behaviour.ready_after
        self._server = _Server((host, port), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where it answers, without a slash at its end."""
        return f"http://{self._server.server_address[0]!s}:{self.port}"

    @property
    def ready(self) -> bool:
        """Whether its model would be loaded by now."""
        return self.behaviour.ready_after >= 0 and time.monotonic() >= self._ready_at

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self) -> None:
        """Answer until the process ends."""
        self._server.serve_forever()

    def says(self, asked: str) -> str:
        """Return what it answers when it was not told what."""
        return f"You said: {asked}"

    def take(self, path: str, body: Any, data: bytes) -> tuple[int, bool]:
        """Note a request; return its number, from 1, and whether it is one that fails."""
        with self._lock:
            self.requests.append((path, body))
            self.bodies.append(data)
            return len(self.requests), self._chance.random() < self.behaviour.fail_rate

    def count(self, *, running: int = 0, prompt: int = 0, completion: int = 0) -> None:
        """Keep the figures of ``/metrics``."""
        with self._lock:
            self.running += running
            self.most_running = max(self.most_running, self.running)
            self.prompt_tokens += prompt
            self.completion_tokens += completion

    def crash(self) -> NoReturn:
        """End as a crash does: nothing is said and nothing finished."""
        if self._dies:
            os._exit(134)
        raise _Gone


class FakeLeader(FakeEngine):
    """Leads a group: it is ready once it has a connection to each of the others, and asks all of them about each prompt."""

    def __init__(self, *args: Any, others: Sequence[tuple[str, int]], **more: Any) -> None:
        super().__init__(*args, **more)
        self._members: list[socket.socket] = []
        self._count = len(others)
        self._turn = threading.Lock()
        threading.Thread(target=self._join, args=(others,), daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether all members are there."""
        return len(self._members) == self._count and super().ready

    def _join(self, others: Sequence[tuple[str, int]]) -> None:
        for address in others:
            while True:
                try:
                    self._members.append(socket.create_connection(address, timeout=5))
                    break
                except OSError:
                    time.sleep(0.05)

    def says(self, asked: str) -> str:
        """Return what the members say of it, each in its turn."""
        with self._turn:
            heard = [self._ask(each, asked) for each in self._members]
        return " ".join([super().says(asked), *heard])

    def _ask(self, member: socket.socket, text: str) -> str:
        try:
            member.sendall(json.dumps(text).encode() + b"\n")
            answer = member.makefile("rb").readline()
        except OSError:
            answer = b""
        if not answer:
            raise _Refused(500, "a member of the group is gone")
        return str(json.loads(answer))


def follow(address: tuple[str, int], number: int) -> None:
    """Be a member that does not lead: say to whoever connects what was heard. Until the process ends."""

    class Heard(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                words = len(str(json.loads(line)).split())
                self.wfile.write(json.dumps(f"(member {number} heard {words} words)").encode() + b"\n")

    class Listener(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Listener(address, Heard) as server:
        sys.stdout.write(f"member {number} listens on {address[0]}:{address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients go, and connections are cut on purpose."""


class _Gone(ConnectionError):
    """The connection is to be cut."""


class _Refused(Exception):
    """The request is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, engine: FakeEngine, *args: Any) -> None:
        self.engine = engine
        self.behaviour = engine.behaviour
        super().__init__(*args)

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        engine = self.engine
        match self.path.partition("?")[0]:
            case "/health" if engine.ready:
                self._json(200, {"status": "ok"})
            case "/health":
                self._json(503, _error("Loading model", 503))
            case "/v1/models":
                model = {"id": engine.model, "object": "model", "created": 0, "owned_by": "fake"}
                self._json(200, {"object": "list", "data": [model]})
            case "/metrics":
                self._text(
                    f"fake:requests_running {engine.running}\n"
                    f"fake:prompt_tokens_total {engine.prompt_tokens}\n"
                    f"fake:generation_tokens_total {engine.completion_tokens}\n"
                )
            case _:
                self._json(404, _error(f"there is no {self.path}", 404))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.engine.count(running=1)
        try:
            self._answer(self.path.partition("?")[0], data)
        except _Refused as refused:
            self._json(refused.status, _error(str(refused), refused.status))
        except ConnectionError:
            self.close_connection = True
        finally:
            self.engine.count(running=-1)

    def _answer(self, path: str, data: bytes) -> None:
        answers = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embeddings,
        }
        if (answer := answers.get(path)) is None:
            raise _Refused(404, f"there is no {path}")
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise _Refused(400, "the body is no JSON object")
        self._misbehave(*self.engine.take(path, body, data))
        answer(body)

    def _misbehave(self, number: int, fails: bool) -> None:
        wanted = self.behaviour
        if wanted.crash_at and number >= wanted.crash_at:
            self.engine.crash()
        if wanted.hang_from and number >= wanted.hang_from:
            self.engine.ending.wait()
            raise _Gone
        if not self.engine.ready:
            raise _Refused(503, "Loading model")
        if fails:
            raise _Refused(wanted.fail_status, "the fake engine was told to fail")

    def _chat(self, body: dict[str, Any]) -> None:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _Refused(400, "messages is missing or empty")
        texts = [_content(each) for each in messages]
        self._generate(body, " ".join(texts), texts[-1], chat=True)

    def _completion(self, body: dict[str, Any]) -> None:
        prompt = body.get("prompt")
        prompt = " ".join(map(str, prompt)) if isinstance(prompt, list) else prompt
        if not isinstance(prompt, str):
            raise _Refused(400, "prompt is missing")
        self._generate(body, prompt, prompt, chat=False)

    def _generate(self, body: dict[str, Any], prompt: str, asked: str, *, chat: bool) -> None:
        words = (self.behaviour.answer or self.engine.says(asked)).split()
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        cut = isinstance(limit, int) and 0 < limit < len(words)
        words = words[:limit] if cut else words
        made = _Made(self.engine.model, chat, words, "length" if cut else "stop", len(prompt.split()))
        self.engine.count(prompt=made.prompt)
        if body.get("stream"):
            options = body.get("stream_options")
            self._stream(made, usage=isinstance(options, dict) and bool(options.get("include_usage")))
            return
        for _ in self._paced(words):
            pass
        self._json(200, made.whole())

    def _paced(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the words at the speed that was asked for."""
        began = time.monotonic() + self.behaviour.time_to_first_token
        speed = self.behaviour.tokens_per_second
        for number, word in enumerate(words):
            due = began + (number / speed if speed else 0.0)
            if self.engine.ending.wait(max(0.0, due - time.monotonic())):
                raise _Gone
            self.engine.count(completion=1)
            yield word if number == 0 else f" {word}"

    def _stream(self, made: _Made, *, usage: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if made.chat:
            self._event(made.chunk("", role=True))
        for number, word in enumerate(self._paced(made.words)):
            if self.behaviour.cut_after and number >= self.behaviour.cut_after:
                raise _Gone
            self._event(made.chunk(word))
        self._event(made.chunk("", finish=made.finish))
        if usage:
            self._event({**made.head(stream=True), "choices": [], "usage": made.usage()})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _embeddings(self, body: dict[str, Any]) -> None:
        given = body.get("input")
        texts = (
            given if isinstance(given, list) and not all(isinstance(each, int) for each in given) else [given]
        )
        if given is None or not texts:
            raise _Refused(400, "input is missing or empty")
        wanted = body.get("dimensions") or self.behaviour.embedding_size
        if not isinstance(wanted, int) or not 1 <= wanted <= 65536:
            raise _Refused(400, "dimensions is a number from 1 to 65536")
        count = sum(len(str(each).split()) for each in texts)
        self.engine.count(prompt=count)
        vectors = [_vector(str(each), wanted) for each in texts]
        if body.get("encoding_format") == "base64":
            coded: list[Any] = [
                base64.b64encode(struct.pack(f"<{wanted}f", *each)).decode() for each in vectors
            ]
        else:
            coded = list(vectors)
        data = [{"object": "embedding", "index": n, "embedding": each} for n, each in enumerate(coded)]
        usage = {"prompt_tokens": count, "total_tokens": count}
        self._json(200, {"object": "list", "model": self.engine.model, "data": data, "usage": usage})

    def _json(self, status: int, document: object) -> None:
        self._send(status, json.dumps(document).encode(), "application/json")

    def _text(self, text: str) -> None:
        self._send(200, text.encode(), "text/plain; version=0.0.4")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _event(self, document: object) -> None:
        self._chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()


class _Made:
    """One answer, whole or in pieces, as chat and as completion have it."""

    def __init__(self, model: str, chat: bool, words: Sequence[str], finish: str, prompt: int) -> None:
        self.model, self.chat, self.words, self.finish, self.prompt = model, chat, words, finish, prompt
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{random.getrandbits(64):016x}"
        self.created = int(time.time())

    def head(self, *, stream: bool = False) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self) -> dict[str, int]:
        made = len(self.words)
        return {"prompt_tokens": self.prompt, "completion_tokens": made, "total_tokens": self.prompt + made}

    def whole(self) -> dict[str, Any]:
        text = " ".join(self.words)
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **content, "finish_reason": self.finish}
        return {**self.head(), "choices": [choice], "usage": self.usage()}

    def chunk(self, text: str, *, role: bool = False, finish: str | None = None) -> dict[str, Any]:
        delta = {} if finish else {"content": text}
        if role:
            delta = {"role": "assistant", **delta}
        content: dict[str, Any] = {"delta": delta} if self.chat else {"text": text}
        return {
            **self.head(stream=True),
            "choices": [{"index": 0, **content, "finish_reason": finish}],
        }


def _content(message: object) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        parts = [each.get("text") for each in content if isinstance(each, dict)]
        return " ".join(each for each in parts if isinstance(each, str))
    return content if isinstance(content, str) else ""


def _vector(text: str, size: int) -> list[float]:
    """Return a direction that is the text's own, of length 1."""
    chance = random.Random(hashlib.sha256(text.encode()).digest())
    values = [chance.gauss(0, 1) for _ in range(size)]
    length = math.sqrt(sum(each * each for each in values)) or 1.0
    return [each / length for each in values]


def _error(message: str, status: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "fake_engine_error", "code": status}}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return VERSION


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(
        prog="fake-engine",
        description="An engine without a model, for tests.",
        epilog="Further parameters: "
        + ", ".join(f"--{each.name.replace('_', '-')}={each.default}" for each in fields(Behaviour)),
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", default="fake", help="what /v1/models calls the model")
    parser.add_argument("--model", default="", help="taken, and not looked at")
    parser.add_argument("--group", default="", help="addresses of all members, HOST:PORT, the leader's first")
    parser.add_argument("--member", type=int, default=0, help="which of them it is")
    parser.add_argument("--version", action="version", version=f"fake-engine {_version()}")
    known, rest = parser.parse_known_args(argv)
    try:
        behaviour = Behaviour.parse(rest)
    except ValueError as error:
        parser.error(str(error))
    if behaviour.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(behaviour.listen_after)
    pairs = (each.rpartition(":") for each in known.group.split(",") if each)
    group = [(host, int(port)) for host, _, port in pairs]
    if known.member:
        follow(group[known.member], known.member)
    where = {"model": known.served_model_name, "host": known.host, "port": known.port, "dies": True}
    engine = FakeLeader(behaviour, others=group[1:], **where) if group else FakeEngine(behaviour, **where)
    sys.stdout.write(f"listening on {engine.url}\n")
    sys.stdout.flush()
    engine.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
