"""The models that plugins carry: their cards for the catalog, their files for a worker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gpustack.extensions.catalogue import Catalogue, Registered
from gpustack.extensions.guard import Guard
from gpustack.extensions.opening import opened
from gpustack.kit.errors import InvalidInput
from gpustack.plugin import BundledModel, Host, ModelCard, PluginError

#: Seconds that a plugin has to open a model.
_OPENING = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One bundled model with its card, and the plugin that brings it."""

    name: str
    card: ModelCard
    plugin: str


class BundledModels:
    """Every bundled model of a catalogue, each opened when it is first asked for.

    An async context manager: its lifetime is that of the opened extensions.
    """

    def __init__(self, catalogue: Catalogue, host: Host) -> None:
        self._catalogue = catalogue
        self._host = host
        self._stack = AsyncExitStack()
        self._opened: dict[str, BundledModel[Any]] = {}
        self._cards: dict[str, Described] = {}
        self._opening: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._catalogue.bundled_models)

    async def describe(self, name: str) -> Described:
        """Return the card of one, which is asked for once. InvalidInput for an unknown name, PluginError for a broken plugin."""
        if (known := self._cards.get(name)) is not None:
            return known
        registered, model = await self._open(name)
        card: object = await Guard.call(registered.plugin, model.card)
        if not isinstance(card, ModelCard):
            raise PluginError(
                f"plugin {registered.plugin}: card of {name} returned {card!r}, which is no ModelCard"
            )
        return self._cards.setdefault(name, Described(name=name, card=card, plugin=registered.plugin))

    async def path(self, name: str) -> Path:
        """Return where the files of one are on this machine. Raises as :meth:`describe` does, and what the plugin refuses."""
        registered, model = await self._open(name)
        path: object = await Guard.call(registered.plugin, model.path)
        if not isinstance(path, Path) or not path.is_absolute():
            raise PluginError(
                f"plugin {registered.plugin}: path of {name} returned {path!r}, which is no absolute path"
            )
        return path

    def refuse_unknown(self, name: str) -> None:
        """Raise InvalidInput, naming what there is, when no plugin brings ``name``."""
        if name not in self._catalogue.bundled_models:
            raise InvalidInput(
                f"no installed plugin brings a model {name!r}; there are: {', '.join(self.names) or 'none'}"
            )

    async def _open(self, name: str) -> tuple[Registered[BundledModel[Any]], BundledModel[Any]]:
        self.refuse_unknown(name)
        registered = self._catalogue.bundled_models[name]
        # Opening one may take a while, in which others ask for it.
        async with self._opening[name]:
            if (model := self._opened.get(name)) is None:
                model = self._opened[name] = await self._made(registered)
        return registered, model

    async def _made(self, registered: Registered[BundledModel[Any]]) -> BundledModel[Any]:
        """Make and open one. Whatever goes wrong is the plugin's: PluginError of one line."""
        return await opened(self._stack, self._catalogue, registered, self._host, limit=_OPENING)
