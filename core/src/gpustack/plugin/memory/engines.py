"""What engines take besides weights and cache, by version: activations, graphs, and fixed costs of each GPU.

The numbers are of llama.cpp as measured with this release's tests, and of vLLM and SGLang from how they allocate and
what they log at start. Where a start measures more or less, :mod:`.learning` corrects the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gpustack.plugin.errors import Refused

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """Costs of one engine from one version on. Sizes are bytes."""

    engine: str
    #: The first version that has them; earlier ones have those of the entry before.
    since: tuple[int, ...] = ()
    #: Elements that a token takes while it is computed: times the hidden size, and times the width of the
    #: feed-forward part that it passes (cut by tensor parallelism).
    hidden_rows: float
    inner_rows: float
    #: Bytes of such an element.
    activation_bytes: int
    #: Copies of the scores of all tokens, in 32 bits, for each sequence that is sampled.
    score_rows: float
    #: Captured graphs: sizes of a batch, and bytes of one for each layer.
    graph_sizes: int = 0
    graph_bytes: int = 0
    #: On each GPU: the runtime with its libraries, and what talking to other GPUs adds.
    runtime: int
    collective: int = 0
    #: In RAM: one process for each GPU, and one for all.
    process: int
    host: int


_VLLM = EngineCosts(
    engine="vllm",
    hidden_rows=4,
    inner_rows=3,
    activation_bytes=2,
    score_rows=3,
    graph_sizes=35,
    graph_bytes=512 << 10,
    runtime=600 * _MIB,
    collective=600 * _MIB,
    process=2500 * _MIB,
    host=1500 * _MIB,
)

_COSTS = (
    EngineCosts(
        engine="llama-cpp",
        hidden_rows=5,
        inner_rows=3,
        activation_bytes=4,
        score_rows=1,
        # 457 to 695 MiB on an H100 with CUDA 13; of the kernels that a model needs, each loads its own.
        runtime=700 * _MIB,
        process=0,
        host=512 * _MIB,
    ),
    _VLLM,
    # Since the second engine core: 51 sizes are captured, piecewise and whole.
    replace(_VLLM, since=(0, 11), graph_sizes=51, graph_bytes=384 << 10),
    EngineCosts(
        engine="sglang",
        hidden_rows=4,
        inner_rows=3,
        activation_bytes=2,
        score_rows=3,
        graph_sizes=23,
        graph_bytes=1 << 20,
        runtime=800 * _MIB,
        collective=600 * _MIB,
        process=2500 * _MIB,
        host=1500 * _MIB,
    ),
)


def costs_of(engine: str, version: str = "") -> EngineCosts:
    """Return the costs of ``version`` of an engine; of the newest known when it is not a number.

    Raises Refused for an engine that none are known of.
    """
    entries = [each for each in _COSTS if each.engine == engine]
    if not entries:
        known = ", ".join(dict.fromkeys(each.engine for each in _COSTS))
        raise Refused(f"no costs are known of engine {engine!r}; there are {known}")
    number = tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
    fitting = [each for each in entries if not number or each.since <= number]
    return fitting[-1] if fitting else entries[0]
