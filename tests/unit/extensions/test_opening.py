"""An extension is made and entered where it can do no harm; what does not work is one line, and in the list of plugins."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from gpustack.extensions import Catalogue, Registered, opened
from gpustack.extensions.catalogue import Plugin
from gpustack.plugin import Host, NoSettings, PluginError, TryAgain, WebApp

HOST = Host(log=logging.getLogger("test"), data_dir=Path("/d"), bin_dir=Path("/b"))
DOOR = threading.Event()


class Pages(WebApp[NoSettings]):
    name = "pages"
    settings_type = NoSettings
    path = "/pages"

    def files(self) -> Path:
        return Path("/")


class Lives(Pages):
    lives: ClassVar[list[str]] = []

    async def __aenter__(self) -> Self:
        self.lives.append("entered")
        return self

    async def __aexit__(self, *error: object) -> None:
        self.lives.append("left")


class Blocks(Pages):
    async def __aenter__(self) -> Self:
        DOOR.wait(20)
        return self


class BlocksWhenMade(Pages):
    def __init__(self, *args: Any) -> None:
        DOOR.wait(20)
        super().__init__(*args)


class Exits(Pages):
    async def __aenter__(self) -> Self:
        sys.exit(3)


class ExitsWhenMade(Pages):
    def __init__(self, *_args: Any) -> None:
        sys.exit(3)


class Interrupts(Pages):
    async def __aenter__(self) -> Self:
        raise KeyboardInterrupt


class Cancels(Pages):
    async def __aenter__(self) -> Self:
        raise asyncio.CancelledError


class Forgets(Pages):
    async def __aenter__(self) -> Self:
        return None


class Waits(Pages):
    async def __aenter__(self) -> Self:
        raise TryAgain("the licence server is away", after=1.0)


@pytest.fixture(autouse=True)
def _opened_again() -> Iterator[None]:
    DOOR.clear()
    yield
    DOOR.set()


def a_catalogue(
    cls: type[WebApp[Any]], *others: type[WebApp[Any]]
) -> tuple[Catalogue, Registered[WebApp[Any]]]:
    catalogue = Catalogue()
    for number, each in enumerate((cls, *others)):
        catalogue.web_apps[f"{each.name}{number}"] = Registered(
            cls=each, plugin="acme", distribution="acme-dist", version="1"
        )
    catalogue.plugins["acme"] = Plugin(name="acme", distribution="acme-dist", version="1", state="loaded")
    return catalogue, catalogue.web_apps["pages0"]


async def test_one_lives_as_long_as_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lives, "lives", [])
    catalogue, registered = a_catalogue(Lives)
    async with AsyncExitStack() as stack:
        assert isinstance(await opened(stack, catalogue, registered, HOST), Lives)
        assert Lives.lives == ["entered"]
    assert Lives.lives == ["entered", "left"]
    assert catalogue.plugins["acme"].state == "loaded"


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Blocks, "was not opened within 0.2 s"),
        (BlocksWhenMade, "making pages did not answer within 0.2 s"),
        (Exits, "pages cannot be opened: SystemExit: 3"),
        (ExitsWhenMade, "pages cannot be made: SystemExit: 3"),
        (Interrupts, "pages cannot be opened: KeyboardInterrupt"),
        (Cancels, "pages cannot be opened: CancelledError"),
        (Forgets, "its __aenter__ does not return itself"),
    ],
)
async def test_one_that_misbehaves_is_one_line_and_holds_nobody_up(
    cls: type[WebApp[Any]], words: str
) -> None:
    catalogue, registered = a_catalogue(cls)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        with pytest.raises(PluginError) as raised:
            await opened(stack, catalogue, registered, HOST, limit=0.2)
    took = time.monotonic() - began
    ticking.cancel()
    assert words in raised.value.message
    assert "plugin acme" in raised.value.message
    assert "\n" not in raised.value.message
    # A loop that stood still would have counted nothing.
    assert took < 0.15 or ticks > 2


async def test_the_list_of_plugins_tells_what_could_not_be_opened() -> None:
    catalogue, registered = a_catalogue(Exits, Pages)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            with pytest.raises(PluginError):
                await opened(stack, catalogue, registered, HOST)
        assert catalogue.plugins["acme"].state == "partly"
        (failure,) = catalogue.failures
        assert (failure.stage, failure.error) == (
            "open",
            "plugin acme: pages cannot be opened: SystemExit: 3",
        )
        catalogue.note_unfit(catalogue.web_apps["pages1"], "no files")
    assert catalogue.plugins["acme"].state == "failed"
    assert catalogue.plugins["acme"].reason.endswith("SystemExit: 3; no files")


async def test_passing_trouble_makes_nobody_unfit() -> None:
    catalogue, registered = a_catalogue(Waits)
    async with AsyncExitStack() as stack:
        with pytest.raises(TryAgain):
            await opened(stack, catalogue, registered, HOST)
    assert catalogue.plugins["acme"].state == "loaded"
