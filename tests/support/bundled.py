"""A catalogue with a bundled model whose file a test names."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from gpustack.extensions import BundledModels, Catalogue, Registered
from gpustack.plugin import BundledModel, Host, ModelCard, NoSettings

CARD = ModelCard(
    title="Tiny",
    summary="It is tiny.",
    categories=("llm",),
    parameters=2_345_678,
    context_length=2048,
    license="MIT",
)


def a_bundled_model(file: Path, name: str = "tiny") -> Registered[BundledModel[Any]]:
    """Return a model called ``name`` of the plugin ``acme``, whose files are at ``file``."""

    class Tiny(BundledModel[NoSettings]):
        settings_type = NoSettings

        def card(self) -> ModelCard:
            return CARD

        def path(self) -> Path:
            return file

    Tiny.name = name
    return Registered(cls=Tiny, plugin="acme", distribution="acme-dist", version="1")


@contextlib.asynccontextmanager
async def bundled_models(*models: Registered[BundledModel[Any]]) -> AsyncIterator[BundledModels]:
    """Open the bundled models of a catalogue that has these."""
    catalogue = Catalogue(bundled_models={each.name: each for each in models})
    host = Host(log=logging.getLogger("test"), data_dir=Path("/d"), bin_dir=Path("/b"))
    async with BundledModels(catalogue, host) as opened:
        yield opened
