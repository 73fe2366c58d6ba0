"""A gateway's process is killed while it answers streams: what its clients had is written down, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from gpustack.dataplane.metering.journal import Journal
from gpustack.plugin.routing import UsageRecord
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from support.gateway import CHAT, KEY, SOON

#: A gateway as such, in a process of its own.
_GATEWAY = """
import asyncio, sys
from pathlib import Path
from support.gateway import a_gateway, a_route, a_target

async def main():
    async with a_gateway(Path(sys.argv[1])) as running:
        running.apply(a_route(a_target(4, int(sys.argv[2]))))
        print(running.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
STREAMS = 8


@contextlib.asynccontextmanager
async def a_process(
    tmp_path: Path, engine: FakeEngine
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    port = engine.url.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _GATEWAY, str(tmp_path), port),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process, (await asyncio.wait_for(process.stdout.readline(), SOON)).decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Seen:
    """What one client had of its stream."""

    def __init__(self) -> None:
        self.chunks = 0
        self.request_id = ""

    async def watch(self, client: httpx.AsyncClient, whole: bool) -> None:
        asked = {**CHAT, "stream": True, "max_tokens": 5 if whole else 10_000}
        with contextlib.suppress(httpx.TransportError):
            async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
                self.request_id = answer.headers["x-request-id"]
                async for line in answer.aiter_lines():
                    self.chunks += '"content": "' in line and '"content": ""' not in line


async def all_records(tmp_path: Path) -> list[UsageRecord]:
    """Return all that whoever comes next is told."""
    found: list[UsageRecord] = []
    async with Journal(tmp_path / "usage", memory=tmp_path) as journal:
        with contextlib.suppress(TimeoutError):
            while True:
                batch = await asyncio.wait_for(journal.next_batch(), 0.5)
                found += batch.records
                await journal.acknowledge(batch)
    return found


async def test_a_gateway_killed_under_streams_accounts_for_all_that_its_clients_had(tmp_path: Path) -> None:
    with FakeEngine(Behaviour(tokens_per_second=100, answer="word " * 5000)) as engine:
        async with (
            a_process(tmp_path, engine) as (process, url),
            httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as client,
        ):
            whole = [Seen() for _ in range(2)]
            await asyncio.gather(*(each.watch(client, True) for each in whole))
            cut = [Seen() for _ in range(STREAMS)]
            watching = [asyncio.create_task(each.watch(client, False)) for each in cut]
            async with asyncio.timeout(SOON):
                while min(each.chunks for each in cut) < 20:
                    await asyncio.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            await asyncio.gather(*watching)
    records = {each.request_id: each for each in await all_records(tmp_path)}

    assert records.keys() == {each.request_id for each in (*whole, *cut)}
    for each in cut:
        record = records[each.request_id]
        assert (record.status, record.estimated, record.user_id, record.key_id) == (499, True, 1, 7)
        assert (record.route, record.model, record.instance_id) == ("tiny", "tiny", 4)
        # What the engine had sent and no client had yet may be there as well.
        assert each.chunks <= record.completion_tokens <= each.chunks + 20
        assert record.prompt_tokens > 0
        assert record.time_to_first_token is not None
        assert record.duration >= record.time_to_first_token > 0
    assert [records[each.request_id].status for each in whole] == [200, 200]
    assert await all_records(tmp_path) == [], "and counts once"
