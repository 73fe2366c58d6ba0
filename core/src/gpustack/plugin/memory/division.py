"""How a model is spread over GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from gpustack.plugin.errors import Refused
from gpustack.plugin.values import ModelFacts, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How often the model is cut: within its layers, between them, and how many copies work side by side."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    #: Experts are dealt out over all GPUs of ``tensor`` and ``data``, instead of each being cut by ``tensor``.
    experts: bool = False
    #: Attention is not cut by ``tensor``, as SGLang does it for latent attention (``--enable-dp-attention``).
    whole_attention: bool = False

    def __post_init__(self) -> None:
        """Raise Refused for what is no division."""
        if min(self.tensor, self.pipeline, self.data) < 1:
            raise Refused(
                f"a model cannot be cut {self.tensor} x {self.pipeline} x {self.data} times; each is 1 or more"
            )

    @property
    def gpus(self) -> int:
        """GPUs of the whole instance."""
        return self.tensor * self.pipeline * self.data

    def fits(self, model: ModelFacts) -> Verdict:
        """Tell whether the model can be cut this way: attention heads are whole, and a stage has a layer."""
        heads, layers = model.attention_heads, model.layers
        if heads and heads % self.tensor and not self.whole_attention:
            return Verdict.no(f"{heads} attention heads cannot be dealt out evenly to {self.tensor} GPUs")
        if layers and self.pipeline > layers:
            return Verdict.no(f"{layers} layers are too few for {self.pipeline} stages")
        return Verdict.yes()

    @classmethod
    def over(cls, model: ModelFacts, gpus: int) -> Self:
        """Return how ``gpus`` GPUs share the model: within its layers as far as heads allow, between them for the rest.

        Raises Refused when it cannot be cut so often.
        """
        tensor = next(each for each in range(gpus, 0, -1) if gpus % each == 0 and is_even(model, each))
        division = cls(tensor=tensor, pipeline=gpus // tensor)
        if not (verdict := division.fits(model)).ok:
            raise Refused(verdict.reason)
        return division

    def within(self, gpus: int) -> Self:
        """Return the same. Raises Refused when there are fewer GPUs than it takes."""
        if self.gpus > gpus:
            raise Refused(
                f"tensor, pipeline and data parallel sizes of {self.tensor}, {self.pipeline} and {self.data} take "
                f"{self.gpus} GPUs, and there are {gpus}"
            )
        return self

    def kv_heads(self, heads: int) -> int:
        """Return how many of ``heads`` key/value heads one GPU keeps; each keeps one at least, so few are doubled."""
        return heads if self.whole_attention else -(-heads // self.tensor)

    def stage(self, layers: int) -> int:
        """Return how many of ``layers`` the longest stage has."""
        return -(-layers // self.pipeline)


def is_even(model: ModelFacts, tensor: int) -> bool:
    """Tell whether the model's heads can be dealt out to ``tensor`` GPUs: each gets as many, or a copy of one."""
    if tensor == 1:
        return True
    heads = 1 if model.latent_rank else model.kv_heads or tensor
    return Division(tensor=tensor).fits(model).ok and (heads % tensor == 0 or tensor % heads == 0)


def even_divisions(model: ModelFacts, gpus: int) -> list[Division]:
    """Return the ways to cut the model within its layers for up to ``gpus`` GPUs, the fewest first.

    Where nothing is known of its heads, only powers of two are believed.
    """
    counts = [each for each in range(1, gpus + 1) if model.attention_heads or each & (each - 1) == 0]
    return [Division(tensor=each) for each in counts if is_even(model, each)]


def division_of(model: ModelFacts, given: Division | None, gpus: int) -> Division:
    """Return how the model is divided over just so many GPUs: as ``given`` by the user, else as it is best cut.

    Raises Refused when it cannot be cut so often, or fewer GPUs are there than ``given`` takes.
    """
    return Division.over(model, gpus) if given is None else given.within(gpus)


def divisions_by_context(
    model: ModelFacts, given: Division | None, gpus: int, tokens: Callable[[Division], int]
) -> list[Division]:
    """Return the divisions over up to ``gpus`` GPUs: those with the longest context first, then the fewest GPUs.

    ``tokens`` tells the longest context that a division has room for. What the user has ``given`` is the only one; raises
    Refused when it takes more GPUs.
    """
    if given is not None:
        return [given.within(gpus)]
    return sorted(even_divisions(model, gpus), key=lambda each: (-tokens(each), each.gpus))
