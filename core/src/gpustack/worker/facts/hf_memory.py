"""What of a ``config.json`` decides over memory: which layers keep what, in the words of many authors."""

from __future__ import annotations

from typing import Any

from gpustack.worker.facts.reader import whole

_LINEAR = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "ssm")
_WINDOWED = ("sliding_attention", "chunked_attention", "local_attention", "sliding")
_MOST = 4096


def number(config: dict[str, Any], *names: str) -> int:
    """Return the first of ``names`` that holds a positive number, or 0."""
    return next((found for name in names if (found := whole(config.get(name)))), 0)


def memory_facts(text: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return the fields of ModelFacts about caches and experts, from the language part of a configuration."""
    kinds = _kinds(text, layers)
    states = sum(1 for kind in kinds if kind in _LINEAR)
    return {
        **_latent(text),
        **_windows(text, kinds, layers),
        **_states(text, kinds, states, layers),
        **_experts(text),
        "kv_heads_by_layer": _kv_heads(text, kinds),
    }


def _kinds(text: dict[str, Any], layers: int) -> list[str]:
    """Return the kind of each layer where the configuration tells, else nothing."""
    named = text.get("layer_types") or text.get("layers_block_type") or text.get("block_types")
    if isinstance(named, list) and all(isinstance(each, str) for each in named) and len(named) <= _MOST:
        # A pattern may be shorter than the model.
        return [named[n % len(named)] for n in range(min(layers, _MOST))] if named else []
    if isinstance(pattern := text.get("hybrid_override_pattern"), str) and len(pattern) <= _MOST:
        return [{"M": "mamba", "*": "attention"}.get(each, "inner") for each in pattern]
    return _kinds_by_numbers(text, min(layers, _MOST))


def _kinds_by_numbers(text: dict[str, Any], layers: int) -> list[str]:
    if isinstance(indices := text.get("attn_layer_indices"), list):
        return ["attention" if n in indices else "mamba" for n in range(layers)]
    if (period := whole(text.get("attn_layer_period"))) and "mamba_d_state" in text:
        offset = whole(text.get("attn_layer_offset"))
        return ["attention" if n % period == offset else "mamba" for n in range(layers)]
    if (period := whole(text.get("full_attention_interval"))) and "linear_num_value_heads" in text:
        return ["full_attention" if (n + 1) % period == 0 else "linear_attention" for n in range(layers)]
    if str(text.get("model_type", "")) in ("mamba", "mamba2", "falcon_mamba"):
        return ["mamba"] * layers
    return []


def _latent(text: dict[str, Any]) -> dict[str, Any]:
    if not (rank := whole(text.get("kv_lora_rank"))):
        return {}
    return {
        "latent_rank": rank,
        "rotary_length": whole(text.get("qk_rope_head_dim")),
        "latent_head_length": number(text, "qk_nope_head_dim", "v_head_dim"),
        "index_length": whole(text.get("index_head_dim")),
    }


def _windows(text: dict[str, Any], kinds: list[str], layers: int) -> dict[str, Any]:
    window = number(text, "sliding_window", "attention_chunk_size", "sliding_window_size", "local_attention")
    if not window or text.get("use_sliding_window") is False:
        return {}
    count = sum(1 for kind in kinds if kind in _WINDOWED) if kinds else _windowed(text, layers)
    if not count:
        return {}
    own_heads = number(text, "swa_num_key_value_heads")
    own_length = number(text, "swa_head_dim")
    if full := number(text, "global_head_dim"):
        # Here the usual shape is the window's, and the few other layers have the special one.
        own_length = number(text, "head_dim") if full != number(text, "head_dim") else 0
        own_heads = number(text, "num_key_value_heads")
    return {
        "sliding_window": window,
        "window_layers": min(count, layers),
        "window_kv_heads": own_heads,
        "window_key_length": own_length,
        "window_value_length": own_length,
    }


def _windowed(text: dict[str, Any], layers: int) -> int:
    """Return how many layers have a window where no list says it."""
    kind = str(text.get("model_type", ""))
    if period := number(text, "sliding_window_pattern", "_sliding_window_pattern"):
        return layers - layers // period
    if kind == "gemma2":
        return layers - layers // 2
    if kind.startswith("gemma3"):
        return layers - layers // 6
    if kind == "cohere2":
        return layers - layers // 4
    if kind.startswith("llama4"):
        return layers - layers // 4
    if kind.startswith("qwen"):
        # Only layers from there on have one, and only when it is switched on.
        from_layer = whole(text.get("max_window_layers"))
        return max(0, layers - from_layer) if text.get("use_sliding_window") is True else 0
    return layers


def _states(text: dict[str, Any], kinds: list[str], states: int, layers: int) -> dict[str, Any]:
    both = str(text.get("model_type", "")) == "falcon_h1"
    keeping = layers if both else states
    if not keeping:
        return {}
    elements = keeping * _state_of_a_layer(text, kinds)
    return {"state_layers": 0 if both else keeping, "state_elements": elements}


def _state_of_a_layer(text: dict[str, Any], kinds: list[str]) -> int:
    """Return the elements that one layer keeps for a sequence: of its convolution, and of its state."""
    hidden = number(text, "hidden_size", "d_model")
    if heads := whole(text.get("linear_num_value_heads")):
        key, value = whole(text.get("linear_key_head_dim")), whole(text.get("linear_value_head_dim"))
        mixed = 2 * whole(text.get("linear_num_key_heads")) * key + heads * value
        return (number(text, "linear_conv_kernel_dim") - 1) * mixed + heads * key * value
    if kept := whole(text.get("conv_L_cache")):
        return hidden * (kept - 1)
    if not (state := number(text, "mamba_d_state", "ssm_state_size", "state_size")):
        # Linear attention without more numbers keeps a matrix for each head.
        size = number(text, "head_dim") or hidden // max(1, number(text, "num_attention_heads"))
        return number(text, "num_attention_heads") * size * size if kinds else 0
    heads, size = (
        number(text, "mamba_n_heads", "mamba_num_heads"),
        number(text, "mamba_d_head", "mamba_head_dim"),
    )
    expand = number(text, "mamba_expand", "expand") or 2
    inner = number(text, "mamba_d_ssm", "intermediate_size_ssm") or heads * size or expand * hidden
    groups = number(text, "mamba_n_groups", "n_groups") if heads else 0
    kernel = number(text, "mamba_d_conv", "conv_kernel", "mamba_conv_kernel")
    return max(0, kernel - 1) * (inner + 2 * groups * state) + inner * state


def _kv_heads(text: dict[str, Any], kinds: list[str]) -> tuple[int, ...]:
    """Return the key/value heads of each layer where they differ."""
    given = text.get("num_key_value_heads")
    if isinstance(given, list) and len(given) <= _MOST:
        return tuple(whole(each) for each in given)
    if "inner" in kinds:
        heads = whole(given)
        return tuple(heads if kind == "attention" else 0 for kind in kinds)
    return ()


def _experts(text: dict[str, Any]) -> dict[str, Any]:
    experts = number(text, "n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    inner = number(text, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")
    of_expert = number(text, "moe_intermediate_size", "expert_ffn_hidden_size")
    shared = number(text, "shared_expert_intermediate_size")
    return {
        "inner_size": inner,
        "experts": experts,
        "experts_used": number(
            text, "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k"
        ),
        "expert_inner_size": (of_expert or inner) if experts else 0,
        "shared_inner_size": shared or number(text, "n_shared_experts", "num_shared_experts") * of_expert,
    }
