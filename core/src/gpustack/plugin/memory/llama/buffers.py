"""What an engine made of llama.cpp keeps and computes in: cache, buffers, old prompts.

The formulas of the buffers were found by reading what it logs for models of many shapes; tests hold them against it.
"""

from __future__ import annotations

from dataclasses import replace

from gpustack.plugin.memory.cache import cache_bytes, forgetting_bytes
from gpustack.plugin.memory.instance import inner_width
from gpustack.plugin.memory.llama.parameters import Parameters
from gpustack.plugin.memory.llama.shape import (
    DEFAULT_CONTEXT,
    LLAMA_CPP,
    Engine,
    Shape,
    cache_of,
    is_whole_input,
)
from gpustack.plugin.values import ModelFacts

_MIB = 1 << 20

#: Tokens between two copies of windows and states that a slot keeps to go back to, how many of them it keeps at most,
#: and those that it makes near the end of every prompt.
_CHECKPOINT_STEP, _CHECKPOINTS, _CHECKPOINTS_AT_END = 8192, 32, 2

#: Architectures that read the whole input at once and keep nothing.
_ENCODERS = (
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "eurobert",
    "jina-bert-v2",
    "jina-bert-v3",
)


def kv_cache(model: ModelFacts, shape: Shape, parameters: Parameters, engine: Engine = LLAMA_CPP) -> int:
    """Return the bytes that the cache of the whole context takes."""
    cache = cache_of(shape, parameters, engine)
    if model.architecture in _ENCODERS:
        return 0
    if not (model.layers and (model.key_length or model.state_elements)):
        # Seen over many models: 8192 tokens take about an eighth of the weights.
        return int(model.weight_bytes / 8 * shape.total / DEFAULT_CONTEXT)
    return cache_bytes(model, cache)


def compute_buffers(
    model: ModelFacts, shape: Shape, parameters: Parameters, engine: Engine = LLAMA_CPP
) -> int:
    """Return the bytes of intermediate results: of the widest part of a layer, and of what masks the context."""
    cache = cache_of(shape, parameters, engine)
    # Slots of their own are computed side by side, each with its part of the tokens.
    streams = 1 if cache.shared else cache.sequences
    keeps = model.key_length and model.architecture not in _ENCODERS
    cells = [cache.cells // streams] if keeps and model.state_layers < model.layers else []
    if model.window_layers and keeps:
        cells.append(cache.window_cells(model.sliding_window) // streams)
    if model.architecture in _ENCODERS:
        cells = [shape.ubatch]
    # What comes out: the scores of the next token, or vectors.
    scores = 4 * shape.parallel * (model.hidden_size if is_whole_input(model) else model.vocabulary)
    if parameters.get("--flash-attn") == "off" or parameters.has("--no-flash-attn"):
        masks = 4 * sum(cells)
        attention = 4 * (model.attention_heads * max(cells, default=0) + _attention_row(model))
        return shape.ubatch * (masks + max(attention, 4 * _widest_row(model))) + scores
    return shape.ubatch * (2 * sum(cells) + 4 * max(_widest_row(model), _attention_row(model))) + scores


def _widest_row(model: ModelFacts) -> int:
    """Return the elements that a token takes in the widest of the feed-forward or state parts."""
    rows = 5 * model.hidden_size + 3 * inner_width(model) + model.experts_used * model.hidden_size
    if model.state_layers and not model.inner_size:
        # Twice the inner width enters, passes a convolution and is gated; it is twice the hidden size.
        return 2 * model.hidden_size + 13 * model.hidden_size
    return rows


def _attention_row(model: ModelFacts) -> int:
    heads, hidden = model.attention_heads, model.hidden_size
    if model.latent_rank:
        # Queries as they come, in the compressed space, and joined; then values there and expanded.
        latent, both = model.latent_rank, model.latent_rank + model.rotary_length
        return (
            2 * hidden
            + heads * (2 * model.latent_head_length + model.rotary_length + latent + both)
            + 2 * both
        )
    queries = heads * max(model.key_length, model.value_length)
    return 2 * hidden + 4 * queries + model.kv_heads * (model.key_length + model.value_length)


def prompts(model: ModelFacts, shape: Shape, parameters: Parameters, engine: Engine = LLAMA_CPP) -> int:
    """Return the bytes of what the server keeps of earlier prompts, beside the context."""
    if is_whole_input(model):
        return 0
    kept = parameters.integer("--cache-ram", engine.kept_prompts, least=-1)
    size = (kept if kept >= 0 else engine.kept_prompts_unlimited) * _MIB
    if parameters.has("--no-cache-prompt"):
        size = 0
    return size + _checkpoints(model, shape, parameters, engine)


def _checkpoints(model: ModelFacts, shape: Shape, parameters: Parameters, engine: Engine) -> int:
    """Return the bytes of copies of windows and states, which cannot be rolled back otherwise."""
    if parameters.has("--swa-full") or not engine.checkpoints:
        return 0
    one = replace(cache_of(shape, parameters, engine), context=shape.context, sequences=1, shared=False)
    count = min(_CHECKPOINTS, _CHECKPOINTS_AT_END + shape.context // _CHECKPOINT_STEP)
    return forgetting_bytes(model, one) * count * shape.parallel
