"""How a model is spread over GPUs."""

from __future__ import annotations

from dataclasses import dataclass

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

    def kv_heads(self, heads: int) -> int:
        """Return how many of ``heads`` key/value heads one GPU keeps; each keeps one at least, so few are doubled."""
        return heads if self.whole_attention else -(-heads // self.tensor)

    def stage(self, layers: int) -> int:
        """Return how many of ``layers`` the longest stage has."""
        return -(-layers // self.pipeline)
