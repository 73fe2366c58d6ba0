"""The demo models; their files lie beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gpustack.plugin import BundledModel, Category, ModelCard, NoSettings, Refused

_HERE = Path(__file__).resolve().parent


class _Carried(BundledModel[NoSettings]):
    """A model in one file of this package."""

    settings_type = NoSettings
    title: ClassVar[str]
    summary: ClassVar[str]
    category: ClassVar[Category]
    parameters: ClassVar[int]
    context_length: ClassVar[int]

    def card(self) -> ModelCard:
        """Return what it is and what it is not."""
        return ModelCard(
            title=self.title,
            summary=self.summary,
            categories=(self.category,),
            parameters=self.parameters,
            context_length=self.context_length,
            license="Apache-2.0",
        )

    def path(self) -> Path:
        """Return the file. Raises Refused when the installation lacks it."""
        path = _HERE / f"{self.name}.gguf"
        if not path.is_file():
            raise Refused(f"{path} is missing; install gpustack-demo-model anew")
        return path


class Demo(_Carried):
    """The chat model."""

    name = "demo"
    title = "GPUStack demo"
    summary = "A tiny chat model that answers simple questions about GPUStack, and says of all else that it is only a demo."
    category = "llm"
    parameters = 2_754_240
    context_length = 2048


class DemoEmbedding(_Carried):
    """The embedding model."""

    name = "demo-embedding"
    title = "GPUStack demo embedding"
    summary = "A tiny embedding model for short English questions about GPUStack; a demo, of no use for other texts."
    category = "embedding"
    parameters = 824_320
    context_length = 512


class DemoReranker(_Carried):
    """The reranker."""

    name = "demo-reranker"
    title = "GPUStack demo reranker"
    summary = "A tiny reranker for short English questions about GPUStack; a demo, of no use for other texts."
    category = "reranker"
    parameters = 840_961
    context_length = 512
