"""GGUF models of any shape and size with random weights: they load and compute like real ones, and say nonsense.

What memory a model takes follows from its shape alone, so a shape is all that is given here:

    path = random_gguf(folder / "a.gguf", Shape(layers=8, hidden=1024))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.gguf_bytes import ALIGNMENT, gguf

#: Type -> number in the format, elements of a block, bytes of a block.
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q6_K": (14, 256, 210),
}

Tensor = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model is made of. ``experts`` 0 is a dense model, ``latent`` 0 has no latent attention."""

    architecture: str = "llama"
    layers: int = 8
    hidden: int = 1024
    heads: int = 16
    kv_heads: int = 4
    head: int = 64
    inner: int = 2816
    vocabulary: int = 32000
    context: int = 32768
    #: Of the large matrices; the rest is F32.
    type: str = "F16"
    tied: bool = False
    window: int = 0
    experts: int = 0
    experts_used: int = 0
    latent: int = 0
    rotary: int = 0
    state: int = 0
    #: How the vectors of tokens become one; 0: it writes text.
    pooling: int = 0


def random_gguf(path: Path, shape: Shape, *, weights: bool = True) -> Path:
    """Write a model of ``shape`` and return its path. The same shape gives the same file.

    Without ``weights`` the file is as long, takes no room on the disk, and is all zeros behind its header.
    """
    tensors = [(name, size, kind) for name, size, kind in _tensors(shape)]
    sized = [(name, size, TYPES[kind][0], _bytes(size, kind)) for name, size, kind in tensors]
    with path.open("wb") as file:
        file.write(gguf(_metadata(shape), sized, data=0))
        for _, size, kind in tensors:
            length = _bytes(size, kind)
            if not weights:
                file.truncate(file.seek(length + -length % ALIGNMENT, 1))
                continue
            block = _block(kind)
            for start in range(0, length, len(block)):
                file.write(block[: length - start])
            file.write(b"\0" * (-length % ALIGNMENT))
    return path


def _bytes(size: tuple[int, ...], kind: str) -> int:
    _, block, width = TYPES[kind]
    assert size[0] % block == 0, f"rows of {size[0]} elements have no blocks of {block}"
    return math.prod(size) // block * width


def _block(kind: str) -> bytes:
    """Return about a megabyte of small weights, a whole number of blocks."""
    import numpy as np

    make = np.random.default_rng(TYPES[kind][0])
    _, elements, width = TYPES[kind]
    if elements == 1:
        values = make.standard_normal(1 << 19) * 0.02
        return values.astype(np.float32 if kind == "F32" else np.float16).tobytes()
    rows = make.integers(0, 256, (4096, width), dtype=np.uint8)
    # Where a block keeps its half-precision scales; a random one could be infinite.
    for start in {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}[kind]:
        rows[:, start : start + 2] = np.frombuffer(np.float16(0.0005).tobytes(), np.uint8)
    return rows.tobytes()


def _metadata(shape: Shape) -> dict[str, Any]:
    name = shape.architecture
    pieces = [chr(n) if n > 32 else f"<{n}>" for n in range(256)]
    tokens = [*pieces, *(f"w{n}" for n in range(shape.vocabulary - 258)), "<|start|>", "<|end|>"]
    own: dict[str, Any] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.inner,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": 1 if shape.latent else shape.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": shape.latent + shape.rotary if shape.latent else shape.head,
        "attention.value_length": shape.latent or shape.head,
        "rope.dimension_count": shape.rotary or shape.head,
        "rope.freq_base": 10000.0,
        "vocab_size": shape.vocabulary,
    }
    if shape.pooling:
        own["pooling_type"] = shape.pooling
    if shape.window:
        own["attention.sliding_window"] = shape.window
    if shape.experts:
        own |= {
            "expert_count": shape.experts,
            "expert_used_count": shape.experts_used,
            "expert_feed_forward_length": shape.inner,
        }
    if shape.latent:
        own |= {
            "attention.q_lora_rank": shape.latent,
            "attention.kv_lora_rank": shape.latent,
            "attention.key_length_mla": shape.head + shape.rotary,
            "attention.value_length_mla": shape.head,
            "leading_dense_block_count": 0,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.0,
        }
    if shape.state:
        own |= {
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * shape.hidden,
            "ssm.state_size": shape.state,
            "ssm.time_step_rank": shape.hidden // 16,
        }
    return {
        "general.architecture": name,
        **{f"{name}.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [f"w{n} {n % 10}" for n in range(shape.vocabulary - 258)],
        "tokenizer.ggml.bos_token_id": shape.vocabulary - 2,
        "tokenizer.ggml.eos_token_id": shape.vocabulary - 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def _tensors(shape: Shape) -> Iterator[Tensor]:
    hidden = shape.hidden
    yield "token_embd.weight", (hidden, shape.vocabulary), shape.type
    for layer in range(shape.layers):
        for name, size, kind in _layer(shape):
            yield f"blk.{layer}.{name}", size, kind
    yield "output_norm.weight", (hidden,), "F32"
    if not shape.tied:
        yield "output.weight", (hidden, shape.vocabulary), shape.type


def _layer(shape: Shape) -> Iterator[Tensor]:
    hidden, kind = shape.hidden, shape.type
    yield "attn_norm.weight", (hidden,), "F32"
    if shape.state:
        yield from _mamba(shape)
        return
    yield from _latent_attention(shape) if shape.latent else _attention(shape)
    yield "ffn_norm.weight", (hidden,), "F32"
    if shape.architecture.startswith("gemma"):
        yield "post_attention_norm.weight", (hidden,), "F32"
        yield "post_ffw_norm.weight", (hidden,), "F32"
    if shape.experts:
        yield "ffn_gate_inp.weight", (hidden, shape.experts), "F32"
    ends = [("_exps", (shape.experts,))] if shape.experts else [("", ())]
    if shape.latent:
        ends.append(("_shexp", ()))
    for end, extra in ends:
        yield f"ffn_gate{end}.weight", (hidden, shape.inner, *extra), kind
        yield f"ffn_up{end}.weight", (hidden, shape.inner, *extra), kind
        yield f"ffn_down{end}.weight", (shape.inner, hidden, *extra), kind


def _attention(shape: Shape) -> Iterator[Tensor]:
    hidden, kind = shape.hidden, shape.type
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    yield "attn_q.weight", (hidden, queries), kind
    yield "attn_k.weight", (hidden, keys), kind
    yield "attn_v.weight", (hidden, keys), kind
    yield "attn_output.weight", (queries, hidden), kind
    if shape.architecture in ("qwen3", "qwen3moe", "gemma3"):
        yield "attn_q_norm.weight", (shape.head,), "F32"
        yield "attn_k_norm.weight", (shape.head,), "F32"
    if shape.architecture == "qwen2":
        yield "attn_q.bias", (queries,), "F32"
        yield "attn_k.bias", (keys,), "F32"
        yield "attn_v.bias", (keys,), "F32"


def _latent_attention(shape: Shape) -> Iterator[Tensor]:
    hidden, kind = shape.hidden, shape.type
    yield "attn_q_a.weight", (hidden, shape.latent), kind
    yield "attn_q_a_norm.weight", (shape.latent,), "F32"
    yield "attn_q_b.weight", (shape.latent, shape.heads * (shape.head + shape.rotary)), kind
    yield "attn_kv_a_mqa.weight", (hidden, shape.latent + shape.rotary), kind
    yield "attn_kv_a_norm.weight", (shape.latent,), "F32"
    yield "attn_k_b.weight", (shape.head, shape.latent, shape.heads), kind
    yield "attn_v_b.weight", (shape.latent, shape.head, shape.heads), kind
    yield "attn_output.weight", (shape.heads * shape.head, hidden), kind


def _mamba(shape: Shape) -> Iterator[Tensor]:
    hidden, inner, rank = shape.hidden, 2 * shape.hidden, shape.hidden // 16
    yield "ssm_in.weight", (hidden, 2 * inner), shape.type
    yield "ssm_conv1d.weight", (4, inner), "F32"
    yield "ssm_conv1d.bias", (inner,), "F32"
    yield "ssm_x.weight", (inner, rank + 2 * shape.state), shape.type
    yield "ssm_dt.weight", (rank, inner), shape.type
    yield "ssm_dt.bias", (inner,), "F32"
    yield "ssm_a", (shape.state, inner), "F32"
    yield "ssm_d", (inner,), "F32"
    yield "ssm_out.weight", (inner, hidden), shape.type
