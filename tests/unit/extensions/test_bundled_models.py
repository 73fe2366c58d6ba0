"""Models that plugins carry: found by name, described once, and a broken one is one line naming its plugin."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import BaseModel

from gpustack.extensions import Registered
from gpustack.kit.errors import InvalidInput
from gpustack.plugin import BundledModel, ModelCard, NoSettings, PluginError, Refused
from support.bundled import CARD, a_bundled_model, bundled_models


class Watched(BundledModel[NoSettings]):
    """Counts what is done with it."""

    name = "watched"
    settings_type = NoSettings
    opened = closed = described = 0

    async def __aenter__(self) -> Self:
        type(self).opened += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        type(self).closed += 1

    def card(self) -> ModelCard:
        type(self).described += 1
        return CARD

    def path(self) -> Path:
        raise Refused("its files are missing; install acme-dist anew")


def registered(cls: type[BundledModel[Any]]) -> Registered[Any]:
    return Registered(cls=cls, plugin="acme", distribution="acme-dist", version="1")


def returning(card: Any, path: Any) -> Registered[Any]:
    class Wrong(BundledModel[NoSettings]):
        name = "wrong"
        settings_type = NoSettings

        def card(self) -> ModelCard:
            return card

        def path(self) -> Path:
            return path

    return registered(Wrong)


async def test_one_is_described_and_found(tmp_path: Path) -> None:
    async with bundled_models(
        a_bundled_model(tmp_path / "m.gguf"), a_bundled_model(tmp_path, "also")
    ) as models:
        assert models.names == ["also", "tiny"]
        described = await models.describe("tiny")
        assert (described.name, described.card, described.plugin) == ("tiny", CARD, "acme")
        assert await models.path("tiny") == tmp_path / "m.gguf"


async def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    async with bundled_models(a_bundled_model(tmp_path)) as models:
        with pytest.raises(
            InvalidInput, match=r"no installed plugin brings a model 'tony'; there are: tiny$"
        ):
            await models.path("tony")
    async with bundled_models() as none:
        with pytest.raises(InvalidInput, match=r"there are: none$"):
            await none.describe("tiny")


async def test_it_is_opened_and_described_once_and_closed_at_the_end() -> None:
    Watched.opened = Watched.closed = Watched.described = 0
    async with bundled_models(registered(Watched)) as models:
        assert Watched.opened == 0
        await models.describe("watched")
        await models.describe("watched")
        with pytest.raises(Refused, match="install acme-dist anew"):
            await models.path("watched")
        assert (Watched.opened, Watched.described, Watched.closed) == (1, 1, 0)
    assert Watched.closed == 1


@pytest.mark.parametrize("path", [Path("relative.gguf"), "/a/text.gguf", None])
async def test_a_path_that_is_none_is_the_plugins_fault(path: Any) -> None:
    async with bundled_models(returning(CARD, path)) as models:
        with pytest.raises(PluginError, match=r"plugin acme: path of wrong returned .* no absolute path"):
            await models.path("wrong")


async def test_a_card_that_is_none_is_the_plugins_fault(tmp_path: Path) -> None:
    async with bundled_models(returning({"title": "x"}, tmp_path)) as models:
        with pytest.raises(PluginError, match=r"plugin acme: card of wrong returned .* no ModelCard"):
            await models.describe("wrong")


class Needy(BaseModel):
    key: str


def unopened(settings: type[BaseModel] = NoSettings, *, trouble: str = "") -> Registered[Any]:
    class Unopened(BundledModel[Any]):
        name = "unopened"
        settings_type = settings

        async def __aenter__(self) -> Self:
            if trouble == "hangs":
                await asyncio.Event().wait()
            raise OSError(trouble)

        def card(self) -> ModelCard:
            return CARD

        def path(self) -> Path:
            return Path("/m.gguf")

    return registered(Unopened)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (unopened(trouble="no disk"), r"plugin acme: unopened cannot be opened: OSError: no disk$"),
        (unopened(trouble="hangs"), r"plugin acme: unopened was not opened within 0\.1 s$"),
        (unopened(Needy), r"unopened \(plugin acme\) needs settings that are not given: key$"),
    ],
)
async def test_one_that_cannot_be_opened_is_one_line(
    model: Registered[Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpustack.extensions.bundled._OPENING", 0.1)
    async with bundled_models(model) as models:
        for ask in (models.describe, models.path):
            with pytest.raises(PluginError, match=line):
                await ask("unopened")


async def test_many_who_ask_at_once_open_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Watched.opened = Watched.closed = Watched.described = 0

    async def slowly(self: Watched) -> Watched:
        await asyncio.sleep(0.02)
        Watched.opened += 1
        return self

    monkeypatch.setattr(Watched, "__aenter__", slowly)
    async with bundled_models(registered(Watched)) as models:
        await asyncio.gather(*(models.describe("watched") for _ in range(5)))
    assert (Watched.opened, Watched.closed) == (1, 1)
