"""Carries the demo models: a chat model that knows a little about GPUStack, an embedding model and a reranker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpustack.plugin import BundledModel, hookimpl
from gpustack_demo_model.models import Demo, DemoEmbedding, DemoReranker


@hookimpl
def register_bundled_models() -> Iterable[type[BundledModel[Any]]]:
    """Return the three."""
    return [Demo, DemoEmbedding, DemoReranker]
