"""What of a GGUF header decides over memory: which layers keep what, as llama.cpp has it for each architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpustack.worker.facts.gguf import Header, Items
from gpustack.worker.facts.reader import whole


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Of every ``period`` layers one sees everything, the last or the first; 0: none does."""

    period: int
    full_first: bool = False

    def windows(self, layers: int) -> int:
        """Return how many of ``layers`` have a window."""
        if not self.period:
            return layers
        full = -(-layers // self.period) if self.full_first else layers // self.period
        return layers - full


#: Architectures whose windows llama.cpp uses; it keeps the whole context of others, whatever their header says.
_WINDOWS = {
    "gemma2": _Pattern(2),
    "gemma3": _Pattern(6),
    "gemma3n": _Pattern(5),
    "gpt-oss": _Pattern(2),
    "cohere2": _Pattern(4),
    "exaone4": _Pattern(4),
    "exaone-moe": _Pattern(4),
    "llama4": _Pattern(4),
    "olmo2": _Pattern(4),
    "modern-bert": _Pattern(3, full_first=True),
    "smallthinker": _Pattern(4, full_first=True),
    "afmoe": _Pattern(4),
}
#: Where the header may leave the window out.
_DEFAULT_WINDOW = {"llama4": 8192}
#: Each of these layers keeps a state and nothing else.
_ONLY_STATES = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
#: One layer of so many, the last, keeps keys; the others keep states.
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}


def memory_facts(header: Header, layers: int) -> dict[str, Any]:
    """Return the fields of ModelFacts about caches and experts, from the metadata of the (first) file."""
    heads = _each(header.own("attention.head_count_kv"))
    return {
        "kv_heads_by_layer": heads if len(set(heads)) > 1 else (),
        **_latent(header),
        **_windows(header, layers),
        **_states(header, layers, heads),
        **_experts(header),
    }


def _latent(header: Header) -> dict[str, Any]:
    rank = whole(header.own("attention.kv_lora_rank"))
    # Files from before this key keep keys and values of each head.
    if not rank or not whole(header.own("attention.key_length_mla")):
        return {}
    rotary = whole(header.own("rope.dimension_count"))
    index = whole(header.own("attention.indexer.key_length"))
    return {
        "latent_rank": rank,
        "rotary_length": rotary,
        "latent_head_length": max(0, whole(header.own("attention.key_length_mla")) - rotary),
        "index_length": index,
        "key_length": rank + rotary,
        "value_length": 0,
        "kv_heads": 1,
    }


def _windows(header: Header, layers: int) -> dict[str, Any]:
    architecture = header.architecture
    window = whole(header.own("attention.sliding_window")) or _DEFAULT_WINDOW.get(architecture, 0)
    pattern = header.own("attention.sliding_window_pattern")
    if isinstance(pattern, Items):
        count = sum(1 for each in pattern.numbers[:layers] if each)
    elif architecture in _WINDOWS:
        period = whole(pattern)
        count = (_Pattern(period) if period else _WINDOWS[architecture]).windows(layers)
    else:
        count = 0
    if not window or not count:
        return {}
    return {
        "sliding_window": window,
        "window_layers": count,
        "window_key_length": whole(header.own("attention.key_length_swa")),
        "window_value_length": whole(header.own("attention.value_length_swa")),
    }


def _states(header: Header, layers: int, heads: tuple[int, ...]) -> dict[str, Any]:
    elements = _state_of_a_layer(header)
    if not elements:
        return {}
    architecture = header.architecture
    if architecture in _ONLY_STATES:
        keeping = layers
    elif architecture == "falcon-h1":
        # Its layers keep both.
        return {"state_elements": layers * elements}
    elif architecture in _INTERVALS:
        period = whole(header.own("full_attention_interval")) or _INTERVALS[architecture]
        keeping = layers - layers // period
    else:
        inner = _each(header.own("feed_forward_length"))
        only_inner = sum(1 for each, kv in zip(inner, heads, strict=False) if each and not kv)
        # Some have layers that are nothing but a feed-forward part.
        keeping = sum(1 for each in heads[:layers] if not each)
        keeping -= only_inner if architecture.startswith("nemotron_h") else 0
    return {"state_layers": keeping, "state_elements": keeping * elements}


def _state_of_a_layer(header: Header) -> int:
    """Return the elements that one layer keeps for a sequence: of its convolution, and of its state."""
    hidden = whole(header.own("embedding_length"))
    if size := whole(header.own("wkv.head_size")):
        shifts = whole(header.own("token_shift_count")) or 2
        return hidden * (shifts + size)
    if kept := whole(header.own("shortconv.l_cache")):
        return hidden * (kept - 1)
    inner, state = whole(header.own("ssm.inner_size")), whole(header.own("ssm.state_size"))
    kernel, groups = whole(header.own("ssm.conv_kernel")), whole(header.own("ssm.group_count"))
    return max(0, kernel - 1) * (inner + 2 * groups * state) + inner * state


def _experts(header: Header) -> dict[str, Any]:
    experts, inner = whole(header.own("expert_count")), whole(header.own("expert_feed_forward_length"))
    shared = whole(header.own("expert_shared_feed_forward_length"))
    return {
        "inner_size": max(_each(header.own("feed_forward_length")), default=0),
        "experts": experts,
        "experts_used": whole(header.own("expert_used_count")),
        "expert_inner_size": inner
        or (max(_each(header.own("feed_forward_length")), default=0) if experts else 0),
        "shared_inner_size": shared or whole(header.own("expert_shared_count")) * inner,
    }


def _each(value: Any) -> tuple[int, ...]:
    """Return a number that may be given for each layer, as many numbers."""
    if isinstance(value, Items):
        return tuple(whole(number) for number in value.numbers)
    return (whole(value),) if value is not None else ()
