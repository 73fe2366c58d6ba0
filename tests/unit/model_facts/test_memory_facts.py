"""What decides over memory is read from a model's files: where its weights lie, and what its layers keep."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import ModelFacts
from gpustack.worker.facts import read_facts
from gpustack.worker.facts.hf_memory import memory_facts
from gpustack.worker.facts.tensors import Sums
from support.gguf_bytes import a_gguf

#: F16 of GGUF.
F16 = 1


def a_tensor(name: str, elements: int) -> tuple[str, tuple[int, ...], int, int]:
    return name, (elements,), F16, 2 * elements


def a_header(folder: Path, architecture: str, tensors: tuple[Any, ...] = (), **own: Any) -> ModelFacts:
    """Return what is read of a file whose ``own`` keys belong to its architecture, with ``__`` for a dot."""
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.block_count": 12,
        f"{architecture}.embedding_length": 512,
        f"{architecture}.attention.head_count": 8,
        f"{architecture}.attention.head_count_kv": 2,
    } | {f"{architecture}.{key.replace('__', '.')}": value for key, value in own.items()}
    options = {"tensors": tensors} if tensors else {}
    return read_facts(a_gguf(folder / "m.gguf", metadata, **options))


# Weights ------------------------------------------------------------------------------------------------


def test_weights_of_a_gguf_file_lie_where_their_names_say(tmp_path: Path) -> None:
    facts = a_header(
        tmp_path,
        "llama",
        (
            a_tensor("token_embd.weight", 320),
            a_tensor("blk.0.attn_q.weight", 64),
            a_tensor("blk.1.ffn_up_exps.weight", 128),
            a_tensor("blk.1.ffn_up_shexp.weight", 32),
            a_tensor("output.weight", 160),
            a_tensor("output_norm.weight", 32),
        ),
    )

    assert facts.tensor_bytes == 2 * (320 + 64 + 128 + 32 + 160 + 32)
    assert facts.tensor_bytes < facts.weight_bytes == sum(facts.shard_bytes)
    assert facts.bytes_by_type == (("F16", facts.tensor_bytes),)
    assert facts.layer_bytes == (2 * 64, 2 * (128 + 32))
    assert (facts.embedding_bytes, facts.output_bytes, facts.expert_bytes) == (2 * 320, 2 * 160, 2 * 128)


def test_weights_of_a_hugging_face_directory_are_summed_over_its_shards(tmp_path: Path) -> None:
    shards: list[dict[str, tuple[str, int]]] = [
        {
            "model.embed_tokens.weight": ("BF16", 100),
            "model.layers.0.self_attn.q_proj.weight": ("F8_E4M3", 10),
            "model.layers.0.mlp.experts.7.up_proj.weight": ("F8_E4M3", 20),
        },
        {
            "model.layers.1.mlp.up_proj.weight": ("F8_E4M3", 30),
            "model.visual.blocks.0.attn.qkv.weight": ("BF16", 40),
            "lm_head.weight": ("BF16", 100),
        },
    ]
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["XForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8})
    )
    for number, shard in enumerate(shards, 1):
        _shard(tmp_path / f"model-{number:05}-of-00002.safetensors", shard)
    places = {
        name: f"model-{number:05}-of-00002.safetensors"
        for number, shard in enumerate(shards, 1)
        for name in shard
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    facts = read_facts(tmp_path)

    assert facts.tensor_bytes == 300
    assert facts.bytes_by_type == (("BF16", 240), ("F8_E4M3", 60))
    assert facts.layer_bytes == (30, 30)
    assert (facts.embedding_bytes, facts.output_bytes) == (100, 100)
    assert (facts.expert_bytes, facts.vision_bytes) == (20, 40)
    assert len(facts.shard_bytes) == 2


def _shard(path: Path, tensors: dict[str, tuple[str, int]]) -> None:
    entries, end = {}, 0
    for name, (kind, size) in tensors.items():
        shape = [size // (2 if kind == "BF16" else 1)]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * end)


def test_other_files_beside_a_gguf_file_are_known_by_size(tmp_path: Path) -> None:
    projector = a_gguf(tmp_path / "mmproj-m.gguf", {"general.architecture": "clip"})
    (tmp_path / "notes.txt").write_text("no model")

    facts = a_header(tmp_path, "llama")

    assert facts.companions == (("mmproj-m.gguf", projector.stat().st_size),)


names = st.sampled_from(
    [
        "token_embd.weight",
        "output.weight",
        "blk.0.attn_q.weight",
        "blk.3.ffn_up_exps.weight",
        "model.layers.2.mlp.experts.1.up_proj.weight",
        "model.visual.blocks.9.attn.qkv.weight",
        "lm_head.weight",
        "blk.99999.x",
    ]
) | st.text(max_size=30)
tensors = st.lists(st.tuples(names, st.sampled_from(["F16", "Q8_0"]), st.integers(1, 1 << 40)), max_size=30)


@given(tensors, st.integers(0, 30))
def test_no_tensor_is_lost_or_counted_twice(given_: list[tuple[str, str, int]], cut: int) -> None:
    whole, first, second = Sums(), Sums(), Sums()
    for number, each in enumerate(given_):
        whole.add(*each)
        (first if number < cut else second).add(*each)
    first.join(second)

    # Whichever way the tensors are spread over files; types of as many bytes have no order.
    facts, joined = whole.facts(), first.facts()
    assert dict(joined.pop("bytes_by_type")) == dict(facts["bytes_by_type"])
    assert joined.items() <= facts.items()
    total = sum(size for _, _, size in given_)
    assert facts["tensor_bytes"] == total == sum(size for _, size in facts["bytes_by_type"])
    parts = sum(facts["layer_bytes"]) + facts["embedding_bytes"] + facts["output_bytes"]
    assert parts + facts["vision_bytes"] <= total
    assert facts["expert_bytes"] <= sum(facts["layer_bytes"])


# What layers keep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "pattern", "window_layers"),
    [
        ("gemma3", None, 10),
        ("gemma2", None, 6),
        ("gemma3", 4, 9),
        ("acme", [1, 1, 0] * 4, 8),
        # llama.cpp does not use this one's window.
        ("qwen2", None, 0),
    ],
)
def test_windows(tmp_path: Path, architecture: str, pattern: Any, window_layers: int) -> None:
    own = {} if pattern is None else {"attention__sliding_window_pattern": pattern}
    facts = a_header(tmp_path, architecture, attention__sliding_window=512, **own)

    assert facts.window_layers == window_layers
    assert facts.sliding_window == (512 if window_layers else 0)


def test_latent_attention_keeps_one_vector(tmp_path: Path) -> None:
    facts = a_header(
        tmp_path,
        "deepseek2",
        attention__kv_lora_rank=512,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        rope__dimension_count=64,
    )

    assert (facts.latent_rank, facts.rotary_length, facts.latent_head_length) == (512, 64, 128)
    assert (facts.kv_heads, facts.key_length, facts.value_length) == (1, 576, 0)


def test_files_from_before_that_keep_every_head(tmp_path: Path) -> None:
    facts = a_header(
        tmp_path,
        "deepseek2",
        attention__kv_lora_rank=512,
        attention__key_length=192,
        attention__value_length=128,
    )

    assert facts.latent_rank == 0
    assert (facts.key_length, facts.value_length) == (192, 128)


def test_layers_with_a_state_keep_no_keys(tmp_path: Path) -> None:
    ssm = {"ssm__inner_size": 1024, "ssm__state_size": 16, "ssm__conv_kernel": 4}
    # A convolution keeps three columns, the state sixteen.
    of_a_layer = 3 * 1024 + 1024 * 16

    mamba = a_header(tmp_path, "mamba", **ssm)
    assert (mamba.state_layers, mamba.state_elements) == (12, 12 * of_a_layer)

    mixed = a_header(tmp_path, "jamba", attention__head_count_kv=[0, 0, 0, 2] * 3, **ssm)
    assert (mixed.state_layers, mixed.state_elements) == (9, 9 * of_a_layer)
    assert mixed.kv_heads_by_layer == (0, 0, 0, 2) * 3


def test_experts(tmp_path: Path) -> None:
    facts = a_header(
        tmp_path,
        "qwen3moe",
        expert_count=64,
        expert_used_count=8,
        expert_feed_forward_length=768,
        feed_forward_length=6144,
    )

    assert (facts.experts, facts.experts_used) == (64, 8)
    assert (facts.expert_inner_size, facts.inner_size) == (768, 6144)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "model_type",
    "layer_types",
    "hybrid_override_pattern",
    "attn_layer_indices",
    "attn_layer_period",
    "attn_layer_offset",
    "mamba_d_state",
    "full_attention_interval",
    "linear_num_value_heads",
    "linear_num_key_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "conv_L_cache",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "head_dim",
    "global_head_dim",
    "num_key_value_heads",
    "num_attention_heads",
    "hidden_size",
    "num_experts",
    "moe_intermediate_size",
    "n_shared_experts",
    "mamba_expand",
]
kinds = st.sampled_from(["gemma3", "qwen2", "mamba", "falcon_h1", "llama4", "nemotron_h"])


@given(
    st.dictionaries(st.sampled_from(KEYS), json_values | st.integers(0, 300) | kinds, max_size=12),
    st.integers(0, 200),
)
def test_whatever_a_configuration_holds_is_read_without_a_fault(config: dict[str, Any], layers: int) -> None:
    facts = ModelFacts(
        format="safetensors", path="/m", weight_bytes=1, layers=layers, **memory_facts(config, layers)
    )

    assert 0 <= facts.window_layers <= layers
    assert facts.state_elements >= 0
    assert facts.state_layers >= 0
    assert all(each >= 0 for each in facts.kv_heads_by_layer)
