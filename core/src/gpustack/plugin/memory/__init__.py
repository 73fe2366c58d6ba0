"""How much memory an instance takes, for every backend to use.

A backend says how its engine divides and caches, and gets bytes:

    from gpustack.plugin.memory import Cache, Division, Workload, costs_of, estimate

    cache = Cache(context=8192, sequences=16)
    need = estimate(model, Workload(cache=cache, step=8192), Division(tensor=2), costs_of("vllm", "0.32.0"))
    claim = need.claim()                                    # of the instance: what the scheduler places
    share = need.fraction_of(device.memory_total)           # vLLM's --gpu-memory-utilization, a result

Weights are those of the files, by type and layer. The cache is what the layers keep: keys and values of all tokens
or of a window, the one compressed vector of latent attention, or a state of fixed size. Activations, graphs and
fixed costs depend on the engine and its version (:mod:`.engines`). What was measured at earlier starts corrects the
sum (:mod:`.learning`). All functions are pure.
"""

from gpustack.kit.text import parse_size
from gpustack.plugin.memory.cache import (
    Cache,
    bytes_per_token,
    cache_bytes,
    element_bytes,
    forgetting_bytes,
)
from gpustack.plugin.memory.division import Division, division_of, divisions_by_context, even_divisions
from gpustack.plugin.memory.engines import EngineCosts, costs_of
from gpustack.plugin.memory.extras import Extra, extra_bytes
from gpustack.plugin.memory.fractions import memory_fraction, static_fraction
from gpustack.plugin.memory.instance import Need, Workload, estimate
from gpustack.plugin.memory.learning import Learned, MemoryKey, arguments_digest, corrected, learn
from gpustack.plugin.memory.weights import weight_bytes

__all__ = [
    "Cache",
    "Division",
    "EngineCosts",
    "Extra",
    "Learned",
    "MemoryKey",
    "Need",
    "Workload",
    "arguments_digest",
    "bytes_per_token",
    "cache_bytes",
    "corrected",
    "costs_of",
    "division_of",
    "divisions_by_context",
    "element_bytes",
    "estimate",
    "even_divisions",
    "extra_bytes",
    "forgetting_bytes",
    "learn",
    "memory_fraction",
    "parse_size",
    "static_fraction",
    "weight_bytes",
]
