"""Weights, cache, activations, graphs and fixed costs together."""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.plugin.errors import Refused
from gpustack.plugin.memory.cache import Cache, cache_bytes
from gpustack.plugin.memory.division import Division
from gpustack.plugin.memory.engines import EngineCosts
from gpustack.plugin.memory.fractions import memory_fraction, static_fraction
from gpustack.plugin.memory.weights import weight_bytes
from gpustack.plugin.values import ModelFacts, ResourceClaim


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the instance is to be able to do at once."""

    cache: Cache
    #: Most tokens computed in one step.
    step: int
    #: Graphs are captured for decoding (not with ``--enforce-eager`` or ``--disable-cuda-graph``).
    graphs: bool = True
    #: Bytes of weights loaded besides the model; see :func:`extra_bytes`.
    extra: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one GPU of the instance takes, the one that takes the most, in bytes; and the RAM of the instance."""

    weights: int
    cache: int
    activations: int
    graphs: int
    runtime: int
    ram: int
    gpus: int

    @property
    def vram(self) -> int:
        """All of it, on one GPU."""
        return self.weights + self.cache + self.activations + self.graphs + self.runtime

    def claim(self) -> ResourceClaim:
        """Return it as the scheduler counts."""
        return ResourceClaim(ram=self.ram, vram=self.vram * self.gpus, gpus=self.gpus)

    def fraction_of(self, total: int) -> float:
        """Return vLLM's ``--gpu-memory-utilization`` on GPUs of ``total`` bytes. Raises Refused when too small."""
        return memory_fraction(self.vram, total)

    def static_fraction_of(self, total: int, *, free: int | None = None) -> float:
        """Return SGLang's ``--mem-fraction-static``; ``free`` as :func:`static_fraction` takes it."""
        return static_fraction(self.weights + self.cache, self.vram, total, free=free)


def estimate(model: ModelFacts, work: Workload, division: Division, costs: EngineCosts) -> Need:
    """Return what an engine on GPUs takes. Raises Refused for a division that the model does not allow."""
    verdict = division.fits(model)
    if not verdict.ok:
        raise Refused(verdict.reason)
    many = division.gpus > 1
    return Need(
        weights=weight_bytes(model, division) + work.extra,
        cache=cache_bytes(model, work.cache, division),
        activations=activation_bytes(model, work, division, costs),
        graphs=costs.graph_sizes * costs.graph_bytes * division.stage(model.layers) if work.graphs else 0,
        runtime=costs.runtime + (costs.collective if many else 0),
        ram=costs.host + costs.process * division.gpus,
        gpus=division.gpus,
    )


def activation_bytes(model: ModelFacts, work: Workload, division: Division, costs: EngineCosts) -> int:
    """Return the bytes of intermediate results of one step on one GPU, with the scores of the sampled tokens."""
    rows = costs.hidden_rows * model.hidden_size + costs.inner_rows * inner_width(model) / division.tensor
    rows += model.experts_used * model.hidden_size
    scores = costs.score_rows * 4 * work.cache.sequences * model.vocabulary
    return int(work.step * rows * costs.activation_bytes + scores)


def inner_width(model: ModelFacts) -> int:
    """Return the width of the feed-forward part that one token passes: of its experts together, or of the dense one."""
    if model.experts_used and model.expert_inner_size:
        through = model.experts_used * model.expert_inner_size + model.shared_inner_size
        return max(through, model.inner_size if model.inner_size != model.expert_inner_size else 0)
    # Four times the hidden size where nothing is said, as the first transformers had it.
    return model.inner_size or 4 * model.hidden_size
