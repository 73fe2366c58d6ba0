"""Reports reach the server, each once, and none about what is not ours any more."""

import asyncio

from gpustack.kit.errors import Conflict, Unavailable
from gpustack.schemas import InstanceReport, InstanceState
from gpustack.worker.instances import newest
from gpustack.worker.outbox import Outbox


class Server:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.trouble: Exception | None = None
        self.busy = asyncio.Event()
        self.go_on = asyncio.Event()

    async def send(self, _key: int, report: str) -> None:
        self.heard.append(report)
        self.busy.set()
        await self.go_on.wait()
        if self.trouble is not None:
            raise self.trouble


async def test_what_is_forgotten_while_it_is_sent_is_not_sent_again() -> None:
    server = Server()
    server.trouble = Unavailable("away", retry_after=1)
    outbox: Outbox[str] = Outbox("thing", server.send, first=0.01)
    outbox.put(1, "old")
    await server.busy.wait()

    outbox.forget(1)
    server.go_on.set()
    await asyncio.sleep(0.1)

    assert server.heard == ["old"]
    assert not outbox.pending(1)


async def test_what_came_after_the_forgetting_is_sent_without_the_old() -> None:
    server = Server()
    server.trouble = Unavailable("away", retry_after=1)
    outbox: Outbox[str] = Outbox("thing", server.send, merge=lambda old, new: f"{old}+{new}", first=0.01)
    outbox.put(1, "old")
    await server.busy.wait()

    outbox.forget(1)
    outbox.put(1, "new")
    server.go_on.set()
    await asyncio.sleep(0.05)
    server.trouble = None
    await asyncio.sleep(0.2)

    assert server.heard[:2] == ["old", "new"]
    assert not outbox.pending(1)


async def test_a_refusal_is_told() -> None:
    server = Server()
    server.go_on.set()
    server.trouble = Conflict("it is pending")
    outbox: Outbox[str] = Outbox("thing", server.send)
    refused: list[int] = []
    outbox.on_refused = refused.append

    outbox.put(7, "running")
    await asyncio.sleep(0.05)

    assert refused == [7]
    assert server.heard == ["running"]


def test_the_error_before_a_restart_stays_told_when_reports_are_joined() -> None:
    error = InstanceReport(state=InstanceState.ERROR, state_message="it was killed")
    restart = InstanceReport(state=InstanceState.INITIALIZING, restarted=True)
    running = InstanceReport(state=InstanceState.RUNNING)

    joined = newest(newest(error, restart), running)

    assert (joined.state, joined.restarted, joined.missed_error) == (
        InstanceState.RUNNING,
        True,
        "it was killed",
    )
    assert newest(error, running) == running
    assert "missed_error" not in newest(restart, running).model_fields_set


def test_of_two_restarts_the_later_one_is_told_with_the_error_before_it() -> None:
    first = InstanceReport(
        state=InstanceState.RUNNING, restarted=True, restart_count=1, missed_error="the first"
    )
    error = InstanceReport(state=InstanceState.ERROR, state_message="the second")
    second = InstanceReport(state=InstanceState.INITIALIZING, restarted=True, restart_count=2)

    for joined in (newest(newest(first, error), second), newest(first, newest(error, second))):
        assert (joined.restart_count, joined.missed_error) == (2, "the second")
    assert newest(first, InstanceReport(state=InstanceState.RUNNING)).restart_count == 1
