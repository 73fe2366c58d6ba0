"""How full engines are is asked of them, and nothing that they say or do not say harms the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import PluginError
from gpustack.worker.engine_load import EngineLoads
from gpustack.worker.probe import fetch
from support.reconcile import Obedient

METRICS = """\
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="a } b"} 0.125
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.25 1700000000
"""


class Vllm(Obedient):
    def metrics(self) -> dict[str, str]:
        return {"vllm:kv_cache_usage_perc": "kv_cache_usage_ratio", "vllm:num_requests_running": "running"}


@asynccontextmanager
async def an_engine(answer: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def ok(body: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n" + body.encode()


def test_the_metric_that_the_backend_names_is_read_of_the_fullest_engine() -> None:
    assert Vllm().kv_cache_use(METRICS) == 0.25
    assert Obedient().kv_cache_use(METRICS) is None
    assert Vllm().kv_cache_use("vllm:kv_cache_usage_perc 7\n") == 1.0


@given(
    st.lists(
        st.builds(
            "{}{}{} {}".format,
            st.sampled_from(["vllm:kv_cache_usage_perc", "x", ""]),
            st.sampled_from(["{", "", " "]),
            st.text(max_size=10),
            st.sampled_from(["NaN", "+Inf", "-1", "0.5", "", "}"]) | st.text(max_size=5),
        ),
        max_size=5,
    )
)
def test_whatever_an_engine_says_is_a_part_or_nothing(lines: list[str]) -> None:
    found = Vllm().kv_cache_use("\n".join(lines))
    assert found is None or 0 <= found <= 1


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense", b"HTTP/1.1 404 Not Found\r\n\r\nx", b"HTTP/1.1\r\n\r\n", ok("x" * (2 << 20))],
    ids=["nothing", "nonsense", "404", "no status", "endless"],
)
async def test_an_engine_that_does_not_answer_well_tells_nothing(answer: bytes) -> None:
    async with an_engine(answer) as port:
        assert await fetch(port, "/metrics", timeout=5) is None


async def test_one_that_hangs_is_given_up() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        assert await fetch(server.sockets[0].getsockname()[1], "/metrics", timeout=0.05) is None


async def test_all_that_serve_are_asked_and_one_bad_backend_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Desk:
        async def load_path(self, instance: Any) -> str:
            if instance.backend == "silent":
                return ""
            return "/metrics"

        async def kv_cache_use(self, instance: Any, answer: str) -> float | None:
            if instance.backend == "bad":
                raise PluginError("kv_cache_use returned 'full'")
            return Vllm().kv_cache_use(answer)

    async with an_engine(ok(METRICS)) as port:
        serving = [
            SimpleNamespace(id=number, port=port, backend=backend)
            for number, backend in enumerate(["vllm", "bad", "silent", "vllm"], 1)
        ]
        loads = EngineLoads(Desk(), lambda: serving)  # type: ignore[arg-type]
        with caplog.at_level(logging.WARNING):
            await loads.look()
            await loads.look()
        assert loads.caches == {1: 0.25, 4: 0.25}
        assert len(caplog.records) == 1
        serving.clear()
        await loads.look()
        assert loads.caches == {}
