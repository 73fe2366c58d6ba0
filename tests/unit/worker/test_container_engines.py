"""The container engine is asked rarely, and one answer that is late changes nothing."""

from __future__ import annotations

from gpustack.worker.container_engines import ContainerEngines
from gpustack.worker.runners.daemon import Daemon, NoContainerEngine

DOCKER = Daemon(url="unix:///run/docker.sock", kind="Docker", version="28.2.2", api="1.50")


class Machine:
    def __init__(self) -> None:
        self.now, self.asked = 0.0, 0
        self.engine: Daemon | None = DOCKER
        self.engines = ContainerEngines(self._find, lambda: self.now)

    def _find(self) -> Daemon:
        self.asked += 1
        if self.engine is None:
            raise NoContainerEngine("it does not answer")
        return self.engine

    async def said(self, after: float = 10.0) -> str:
        self.now += after
        found = await self.engines.look()
        return found.name or found.reason


async def test_it_is_asked_once_a_minute() -> None:
    machine = Machine()

    assert {await machine.said() for _ in range(18)} == {"Docker 28.2.2"}
    assert machine.asked == 3


async def test_one_that_comes_is_seen_at_once() -> None:
    machine = Machine()
    machine.engine = None
    assert [await machine.said(), await machine.said()] == ["it does not answer"] * 2
    machine.engine = DOCKER

    assert await machine.said() == "Docker 28.2.2"


async def test_one_late_answer_is_no_news_and_two_are() -> None:
    machine = Machine()
    await machine.said()
    machine.engine = None
    assert await machine.said(after=61) == "Docker 28.2.2"
    machine.engine = DOCKER
    assert await machine.said() == "Docker 28.2.2"
    machine.engine = None

    assert [await machine.said(after=61), await machine.said()] == ["Docker 28.2.2", "it does not answer"]
