"""The contract of gateways, held with traffic: real requests through a gateway that runs, to engines without a model.

    class TestAcmeTraffic(GatewayTrafficSuite):
        extension = AcmeGateway
        given = {"acme_port": 4000}
        lacks = {"usage": "Acme's proxy counts nothing"}

One gateway runs for all tests of a class, as GPUStack would run it; see :mod:`gpustack.testing.gateways`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Self

import httpx
import pytest

from gpustack.plugin import Gateway, Limits, Principal, UsageRecord
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from gpustack.testing.gateways import RunningGateway, a_route, a_target, running_gateway, tls

ALICE, BOB = "sk-alice-of-the-suite", "sk-bob-of-the-suite"
_USERS = {
    ALICE: Principal(user_id=11, username="alice", key_id=111),
    BOB: Principal(user_id=12, username="bob", key_id=112),
}
#: Seconds within which a change counts.
PROMPT = 1.0
#: What a gateway may say that it does not do.
PARTS = ("weights", "kinds", "failover", "fallback", "stream usage", "closing", "limits", "usage")

#: A test of the suite.
Test = Callable[["GatewayTrafficSuite", RunningGateway], None]


def part(name: str) -> Callable[[Test], Test]:
    """Have a test skipped, with the reason, where the gateway says that it lacks this part."""
    assert name in PARTS

    def mark(test: Test) -> Test:
        @functools.wraps(test)
        def held(self: GatewayTrafficSuite, gateway: RunningGateway) -> None:
            if name in self.lacks:
                pytest.skip(f"{self.extension.name} lacks {name}: {self.lacks[name]}")
            test(self, gateway)

        return held

    return mark


class GatewayTrafficSuite:
    """Holds what a gateway does with requests. ``extension`` is the class to hold."""

    extension: ClassVar[type[Gateway[Any]]]
    #: Its settings, by the names of their options; for options without a default, and ports that are free.
    given: ClassVar[Mapping[str, Any]] = {}
    #: What it does not do, by the names in :data:`PARTS`, each with the reason that is printed.
    lacks: ClassVar[Mapping[str, str]] = {}
    #: Seconds within which what was metered is to be told.
    usage_within: ClassVar[float] = 20.0

    @pytest.fixture(scope="class")
    @classmethod
    def gateway(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
        """The gateway, which runs."""
        unknown = sorted(set(cls.lacks) - set(PARTS))
        assert not unknown, f"lacks names {unknown[0]!r}; what may be lacking is {', '.join(PARTS)}"
        with running_gateway(cls.extension, cls.given, tmp_path_factory.mktemp("gateway")) as running:
            yield running

    # Keys -----------------------------------------------------------------------------------------------

    def test_only_a_known_key_is_answered(self, gateway: RunningGateway) -> None:
        """None, an empty one and a wrong one get 401, and nothing of it reaches an engine."""
        with engine() as found:
            gateway.apply([a_route("keys", found.port)], _USERS)
            for headers in (
                {},
                {"Authorization": "Bearer"},
                bearer("sk-nobody"),
                {"Authorization": f"Basic {ALICE}"},
            ):
                answer = ask(gateway, "keys", headers=headers)
                assert answer.status_code == 401, (
                    f"a request with {headers} got {answer.status_code}, not 401"
                )
            assert not found.requests, "a request without a valid key reached the engine"
            for headers in (bearer(ALICE), {"X-API-Key": BOB}):
                answer = ask(gateway, "keys", headers=headers)
                assert answer.status_code == 200, (
                    f"a request with {list(headers)} got {answer.status_code}: {answer.text}"
                )

    def test_no_key_of_a_client_reaches_an_engine(self, gateway: RunningGateway) -> None:
        """An engine may write down what it is sent; what it needs to see of its own is in the target."""
        with Listener() as engine_head:
            gateway.apply([a_route("secret", engine_head.port)], _USERS)
            ask(gateway, "secret", headers={**bearer(ALICE), "X-API-Key": ALICE})
            head = engine_head.head()
        assert ALICE.encode() not in head, "the client's key is in what the engine was sent"

    def test_an_expired_key_is_refused(self, gateway: RunningGateway) -> None:
        """Also by the same table: nobody tells a gateway that time goes by."""
        with engine() as found:
            over = time.time() + 2.0
            soon = replace(_USERS[BOB], expires_at=over)
            late = replace(_USERS[ALICE], expires_at=time.time() - 1.0)
            gateway.apply([a_route("expiry", found.port)], {ALICE: late, BOB: soon})
            assert ask(gateway, "expiry", ALICE).status_code == 401, "a key that is over is answered"
            asked_at = time.time()
            before = ask(gateway, "expiry", BOB).status_code
            assert before == 200 or asked_at > over - 0.5, f"a key that is not over got {before}"
            time.sleep(max(0.0, over - time.time()) + 0.1)
            assert ask(gateway, "expiry", BOB).status_code == 401, "a key was answered after it was over"

    def test_a_key_asks_only_the_models_it_may(self, gateway: RunningGateway) -> None:
        """Another one is 404 or 403 and reaches no engine; ``/v1/models`` does not list it."""
        with engine() as found:
            routes = [a_route("mine", found.port), a_route("theirs", found.port)]
            limited = replace(_USERS[ALICE], allowed=frozenset({"mine"}))
            gateway.apply(routes, {ALICE: limited, BOB: _USERS[BOB]})
            served(gateway, "mine")
            status = ask(gateway, "theirs").status_code
            assert status in (403, 404), f"a model that the key may not ask got {status}, not 404 or 403"
            asked = [body["model"] for _, body in found.requests]
            assert asked == ["mine"], f"with one request that is allowed, the engine was asked for {asked}"
            for key, wanted in ((ALICE, {"mine"}), (BOB, {"mine", "theirs"})):
                names = listed(gateway, key)
                assert names == wanted, f"/v1/models lists {sorted(names)} for a key of {sorted(wanted)}"

    # Models ---------------------------------------------------------------------------------------------

    def test_requests_go_where_their_model_is(self, gateway: RunningGateway) -> None:
        """And nowhere else; a name that no route has is 404, one that nobody serves now is 503."""
        with engine() as one, engine() as other:
            routes = [a_route("one", one.port), a_route("other", other.port), a_route("nobody")]
            gateway.apply(routes, _USERS)
            for name in ("one", "other", "one"):
                served(gateway, name)
            assert (len(one.requests), len(other.requests)) == (2, 1), (
                "a request went to another model's engine"
            )
            for name, wanted in (("no such model", 404), ("nobody", 503)):
                status = ask(gateway, name).status_code
                assert status == wanted, f"the model {name!r} got {status}, not {wanted}"

    def test_a_new_table_takes_the_place_of_the_former(self, gateway: RunningGateway) -> None:
        """Instances come and go: what is not in the newest table gets nothing any more."""
        with engine() as old, engine() as new:
            gateway.apply([a_route("moves", old.port), a_route("goes", old.port)], _USERS)
            served(gateway, "moves")
            gateway.apply([a_route("moves", new.port)], _USERS)
            for _ in range(4):
                served(gateway, "moves")
            counts = (len(old.requests), len(new.requests))
            assert counts == (1, 4), (
                f"of 1 request before a change and 4 after it, the instances got {counts}"
            )
            assert ask(gateway, "goes").status_code == 404, "a model that is gone is still answered"

    @part("weights")
    def test_weights_share_the_requests(self, gateway: RunningGateway) -> None:
        """A target of weight 0 gets nothing while another one is there; three times the weight is about three times as much."""
        with engine() as heavy, engine() as light, engine() as none:
            targets = (
                a_target(heavy.port, weight=300),
                a_target(light.port, weight=100),
                a_target(none.port, weight=0),
            )
            gateway.apply([replace(a_route("shared"), targets=targets)], _USERS)
            for _ in range(80):
                served(gateway, "shared")
            counts = [len(each.requests) for each in (heavy, light, none)]
        assert counts[2] == 0, f"a target of weight 0 got {counts[2]} of 80 requests"
        assert 42 <= counts[0] <= 76, f"of 80 requests, those of weights 300 and 100 got {counts[:2]}"

    @part("kinds")
    def test_a_model_is_asked_only_for_what_it_is(self, gateway: RunningGateway) -> None:
        """A chat with a model for embeddings is a mistake of the client's (4xx), and reaches no engine."""
        with engine() as found:
            gateway.apply([a_route("vectors", found.port, categories=("embedding",))], _USERS)
            status = ask(gateway, "vectors").status_code
            assert 400 <= status < 500, f"a chat with a model for embeddings got {status}"
            assert not found.requests, "a chat reached a model for embeddings"
            answer = post(gateway, "/v1/embeddings", {"model": "vectors", "input": "a b c"})
            assert answer.status_code == 200, f"embeddings got {answer.status_code}: {answer.text}"

    def test_the_engine_gets_its_own_name_and_the_rest_as_it_was(self, gateway: RunningGateway) -> None:
        """An alias becomes the served name; nothing else of the body is another byte."""
        body = (
            '{ "seed":12345678901234567890123, "temperature":1.0e-1,\t"model" : "nick",\n'
            '"messages":[{"role":"user","content":"na\\u00efve \U0001f600 \\"model\\": \\"nick\\""}] , "x":{"model":"nick"}}'
        ).encode()
        with engine() as found:
            target = a_target(found.port, served_name="/models/nick.gguf")
            gateway.apply([replace(a_route("named", aliases=("nick",)), targets=(target,))], _USERS)
            answer = post(gateway, "/v1/chat/completions", body)
            assert answer.status_code == 200, f"an alias got {answer.status_code}: {answer.text}"
            (sent,) = found.bodies
        wanted = body.replace(b'"model" : "nick"', b'"model" : "/models/nick.gguf"')
        assert json.loads(sent)["model"] == "/models/nick.gguf", "the engine was not asked by its served name"
        assert sent == wanted, f"the engine got another body than the client sent:\n{sent!r}\n{wanted!r}"

    # Engines that fail ----------------------------------------------------------------------------------

    @part("failover")
    def test_a_dead_instance_costs_nobody_an_answer(self, gateway: RunningGateway) -> None:
        """What cannot be reached has not begun with a request: another one answers."""
        with engine() as alive:
            with engine() as gone:
                port = gone.port
            gateway.apply([a_route("half-dead", port, alive.port)], _USERS)
            statuses = [ask(gateway, "half-dead").status_code for _ in range(12)]
        assert statuses == [200] * 12, f"with one of two instances dead, the answers were {statuses}"

    @part("fallback")
    def test_another_model_answers_where_nobody_can(self, gateway: RunningGateway) -> None:
        """A route without a target that answers hands its requests to its fallback."""
        with engine() as found:
            routes = [a_route("empty", fallback="second"), a_route("second", found.port)]
            gateway.apply(routes, _USERS)
            served(gateway, "empty")
            assert len(found.requests) == 1, "the fallback was not asked exactly once"

    def test_an_engines_refusal_is_the_clients_to_see(self, gateway: RunningGateway) -> None:
        """What an engine says of a request that it does not take comes through with its status."""
        with engine(fail_rate=1.0, fail_status=422) as found:
            gateway.apply([a_route("strict", found.port)], _USERS)
            answer = ask(gateway, "strict")
        assert answer.status_code == 422, f"the engine's 422 became {answer.status_code}"
        assert "told to fail" in answer.text, f"what the engine says is lost: {answer.text}"

    def test_a_stream_that_breaks_does_not_look_whole(self, gateway: RunningGateway) -> None:
        """The client learns that something is missing: no ``[DONE]``, and an error or a cut connection."""
        with engine(answer="a b c d e f", cut_after=3) as found:
            gateway.apply([a_route("breaks", found.port)], _USERS)
            with contextlib.suppress(httpx.TransportError):
                lines = [line for _, line in stream(gateway, "breaks")]
                assert "data: [DONE]" not in lines, "a stream that was cut off ends with [DONE]"
                assert any("error" in line for line in lines), (
                    "a stream that was cut off ends as if it were whole"
                )

    # Streams --------------------------------------------------------------------------------------------

    def test_pieces_arrive_as_they_are_sent(self, gateway: RunningGateway) -> None:
        """Nothing of a stream waits for what comes after it."""
        with engine(answer="one two three four five six", tokens_per_second=12) as found:
            gateway.apply([a_route("slow", found.port)], _USERS)
            began = time.monotonic()
            times = [at - began for at, line in stream(gateway, "slow") if '"content"' in line]
        assert len(times) >= 6, f"of 6 words only {len(times)} pieces came"
        assert times[-1] - times[0] > 0.2, (
            f"the pieces of half a second came all at once, after {times[0]:.2f} s"
        )

    @part("stream usage")
    def test_a_streams_usage_is_asked_for_and_not_shown(self, gateway: RunningGateway) -> None:
        """The engine is told to count; a client that did not ask for it sees nothing of that, one that did does."""
        with engine(answer="a b c") as found:
            gateway.apply([a_route("counted", found.port)], _USERS)
            unasked = [line for _, line in stream(gateway, "counted")]
            asked = [line for _, line in stream(gateway, "counted", stream_options={"include_usage": True})]
            options = [body.get("stream_options") for _, body in found.requests]
        assert options == [{"include_usage": True}] * 2, f"the engine was sent stream_options {options}"
        assert not any('"usage"' in line for line in unasked), "usage that nobody asked for is in a stream"
        assert unasked[-1] == asked[-1] == "data: [DONE]", "a stream does not end with [DONE]"
        assert any('"completion_tokens": 3' in line for line in asked), "usage that was asked for is missing"

    # Changes --------------------------------------------------------------------------------------------

    def test_a_key_counts_and_counts_no_longer_within_a_second(self, gateway: RunningGateway) -> None:
        """In every process."""
        with engine() as found:
            routes = [a_route("prompt", found.port)]
            gateway.apply(routes, _USERS)
            probe = gateway.publish(routes, _USERS)
            took = until(lambda: gateway.knows(probe), "a new key is refused")
            assert took < PROMPT, f"a new key counted after {took:.2f} s"
            gateway.publish(routes, {BOB: _USERS[BOB]})
            took = until(lambda: not gateway.knows(ALICE), "a key that was removed is answered")
            assert took < PROMPT, f"a key that was removed was answered for {took:.2f} s"

    @part("closing")
    def test_what_a_key_has_begun_ends_with_it_if_that_is_asked(self, gateway: RunningGateway) -> None:
        """Its open streams are cut off, also of models that stay; others' go on."""
        with engine(answer="word " * 100, tokens_per_second=20) as found:
            routes = [a_route("closes", found.port)]
            gateway.apply(routes, _USERS)
            with ThreadPoolExecutor(2) as pool:
                ends = [pool.submit(how_it_ends, gateway, "closes", key) for key in (ALICE, BOB)]
                until(lambda: found.running >= 2, "two streams did not reach the engine")
                gateway.apply(routes, {BOB: _USERS[BOB]}, closed=[111])
                whole, after = ends[0].result()
                bob_goes_on = not ends[1].done()
                assert not whole, "the stream of a key that was revoked went on to its end"
                assert bob_goes_on, "the stream of another key ended, too"
                gateway.apply(routes, {}, closed=[112])
                assert not ends[1].result()[0], "the stream of a key that was revoked went on to its end"
        assert after < 5.0, f"the stream of a key that was revoked went on for {after:.1f} s"

    # Limits ---------------------------------------------------------------------------------------------

    @part("limits")
    def test_too_many_requests_are_told_when_to_come_again(self, gateway: RunningGateway) -> None:
        """Beyond ``requests_per_minute`` they get 429 with Retry-After in seconds, and reach no engine."""
        with engine() as found:
            limited = replace(_USERS[ALICE], key_id=211, limits=Limits(requests_per_minute=4))
            gateway.apply([a_route("limited", found.port)], {ALICE: limited, BOB: _USERS[BOB]})
            answers = [ask(gateway, "limited") for _ in range(12)]
            statuses = [each.status_code for each in answers]
            assert statuses[0] == 200, f"the first of 4 requests a minute got {statuses[0]}"
            refused = [each for each in answers if each.status_code == 429]
            assert 6 <= len(refused) < 12, f"with 4 requests a minute, 12 at once got {statuses}"
            assert len(found.requests) == 12 - len(refused), "a request that was refused reached an engine"
            for each in refused:
                held_off(each)
            assert ask(gateway, "limited", BOB).status_code == 200, "another key is held to the same limit"

    @part("limits")
    def test_requests_at_the_same_time_are_limited(self, gateway: RunningGateway) -> None:
        """Beyond ``concurrency`` they get 429 with Retry-After; when one ends, another one may begin."""
        with engine(answer="w " * 60, tokens_per_second=30) as found:
            limited = replace(_USERS[ALICE], key_id=212, limits=Limits(concurrency=2))
            gateway.apply([a_route("narrow", found.port)], {ALICE: limited})
            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(lambda _: ask(gateway, "narrow"), range(6)))
            statuses = sorted(each.status_code for each in answers)
            assert statuses == [200, 200, 429, 429, 429, 429], (
                f"with a concurrency of 2, six at once got {statuses}"
            )
            most = found.most_running
            assert most == 2, f"with a concurrency of 2, the engine had {most} requests at the same time"
            for each in answers:
                if each.status_code == 429:
                    held_off(each)
            assert ask(gateway, "narrow", max_tokens=1).status_code == 200, (
                "a place that was left is not free"
            )

    # Usage ----------------------------------------------------------------------------------------------

    @part("usage")
    def test_usage_is_told_to_the_token(self, gateway: RunningGateway) -> None:
        """One record for each request that an engine answered, whole or as a stream, with whose it was."""
        with engine(answer="a b c d e") as found:
            target = a_target(found.port, model="the-model")
            gateway.apply([replace(a_route("metered", aliases=("meter",)), targets=(target,))], _USERS)
            served(gateway, "meter", text="one two three")
            assert list(stream(gateway, "metered", key=BOB, text="four five", max_tokens=2)), "no stream came"
            records = gateway.records("metered", 2, within=self.usage_within)
        told = {
            (each.user_id, each.key_id, each.prompt_tokens, each.completion_tokens, each.model)
            for each in records
        }
        assert told == {(11, 111, 3, 5, "the-model"), (12, 112, 2, 2, "the-model")}, (
            f"the records are {records}"
        )
        assert len(records) == 2, f"for two requests there are {len(records)} records"
        for each in records:
            self._says_the_rest(each, target.instance_id)

    @part("usage")
    def test_what_a_client_leaves_is_told_too(self, gateway: RunningGateway) -> None:
        """The engine has worked for it: a record with status 499, and with the tokens that came."""
        with engine(answer="w " * 100, tokens_per_second=20) as found:
            gateway.apply([a_route("left", found.port)], _USERS)
            pieces = stream(gateway, "left")
            for _, line in pieces:
                if '"w"' in line:
                    break
            pieces.close()  # type: ignore[attr-defined]  # a generator
            records = gateway.records("left", 1, within=self.usage_within)
        assert [each.status for each in records] == [499], f"a client left, and the records are {records}"
        counted = records[0].completion_tokens
        assert 1 <= counted < 90, f"a client left after some of 100 tokens, and {counted} are counted"

    @staticmethod
    def _says_the_rest(record: UsageRecord, instance_id: int) -> None:
        assert record.status == 200, f"the status of {record} is not that of the answer"
        assert record.instance_id == instance_id, f"{record} does not say which instance answered"
        assert record.operation == "/v1/chat/completions", f"{record} does not say what was asked"
        assert abs(record.at - time.time()) < 60, f"{record} ends at another time"


# What asks --------------------------------------------------------------------------------------------------


def engine(**behaviour: Any) -> FakeEngine:
    """Return an engine that behaves so, to be entered."""
    return FakeEngine(Behaviour(**behaviour))


def bearer(key: str) -> dict[str, str]:
    """Return the header that shows a key."""
    return {"Authorization": f"Bearer {key}"}


def post(
    gateway: RunningGateway, path: str, body: object, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """Send JSON, or bytes as they are, over a connection of its own, with alice's key unless ``headers`` say otherwise."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    shown = {"Content-Type": "application/json", **(bearer(ALICE) if headers is None else headers)}
    return httpx.post(
        f"{gateway.url}{path}", content=content, headers=shown, timeout=30, verify=tls(), trust_env=False
    )


def ask(
    gateway: RunningGateway,
    model: str,
    key: str = ALICE,
    *,
    text: str = "one two three",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> httpx.Response:
    """Chat with ``model``."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return post(gateway, "/v1/chat/completions", body, bearer(key) if headers is None else headers)


def stream(
    gateway: RunningGateway, model: str, *, key: str = ALICE, text: str = "one two three", **more: Any
) -> Iterator[tuple[float, str]]:
    """Yield the lines of a streamed chat that say something, each with the moment at which it came."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}], **more}
    with (
        httpx.Client(trust_env=False, timeout=30, verify=tls()) as client,
        client.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, headers=bearer(key)) as answer,
    ):
        assert answer.status_code == 200, f"a stream got {answer.status_code}: {answer.read()!r}"
        for line in answer.iter_lines():
            if line.startswith(("data:", "event:")):
                yield time.monotonic(), line


def how_it_ends(gateway: RunningGateway, model: str, key: str) -> tuple[bool, float]:
    """Stream to the end; return whether it came whole, and the seconds that it went on."""
    began, last = time.monotonic(), ""
    with contextlib.suppress(httpx.TransportError):
        for _, line in stream(gateway, model, key=key):
            last = line
    return last == "data: [DONE]", time.monotonic() - began


def listed(gateway: RunningGateway, key: str) -> set[str]:
    """Return the names in ``/v1/models``."""
    answer = httpx.get(
        f"{gateway.url}/v1/models", headers=bearer(key), timeout=30, verify=tls(), trust_env=False
    )
    assert answer.status_code == 200, f"GET /v1/models got {answer.status_code}: {answer.text}"
    return {str(each["id"]) for each in answer.json()["data"]}


def served(gateway: RunningGateway, model: str, **more: Any) -> None:
    """Chat with ``model``, and hold that it answers."""
    answer = ask(gateway, model, **more)
    assert answer.status_code == 200, f"the model {model!r} got {answer.status_code}, not 200: {answer.text}"


def until(holds: Callable[[], bool], otherwise: str, *, within: float = 5.0, row: int = 8) -> float:
    """Return the seconds until ``holds`` was true ``row`` times in a row, counted to the first of them."""
    began = since = time.monotonic()
    found = 0
    while found < row:
        if holds():
            since = time.monotonic() if found == 0 else since
            found += 1
        else:
            found = 0
            assert time.monotonic() - began < within, f"after {within:g} s {otherwise}"
    return since - began


def held_off(answer: httpx.Response) -> None:
    """Hold that a refusal says when to come again."""
    after = answer.headers.get("retry-after", "")
    assert after.isdigit() and int(after) >= 1, f"a 429 has Retry-After {after!r}; give whole seconds"  # noqa: PT018


class Listener:
    """What stands for an engine and keeps the head of what it is sent, byte for byte."""

    def __enter__(self) -> Self:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._sock.getsockname()[1])
        self._head = b""
        self._come = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def head(self) -> bytes:
        """Return the head of the first request."""
        assert self._come.wait(10), "no request reached the engine"
        return self._head

    def _serve(self) -> None:
        body = b'{"object": "chat.completion", "choices": []}'
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._sock.accept()
                with peer:
                    data = b""
                    while b"\r\n\r\n" not in data and (piece := peer.recv(65536)):
                        data += piece
                    self._head = self._head or data
                    peer.sendall(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                        b"content-length: %d\r\n\r\n%b" % (len(body), body)
                    )
                    self._come.set()


__all__ = ["PARTS", "GatewayTrafficSuite"]
