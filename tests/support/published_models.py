"""Published models as their own configuration files describe them, with the arithmetic of weights and cache by hand.

Each row holds the numbers of the model's ``config.json`` that matter here. ``parameters`` is spelled out as the sum of
its matrices, ``kv`` as the bytes that one token leaves in all layers together, in two-byte elements: keys and values
(the 2) x bytes (2) x layers x heads x head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    name: str
    config: dict[str, Any]
    #: Elements of all weights.
    parameters: int
    #: Bytes of one more token inside all windows.
    kv: int
    #: Bytes of the states of one sequence, in 32 bits.
    state: int = 0
    #: Bytes of the cache of one request of 32768 tokens, where windows or states make it another than 32768 x kv.
    long: int | None = None
    #: What people publish, to see that the sum is right: billions of parameters.
    said: float = 0.0


def _llama(
    hidden: int, layers: int, heads: int, kv: int, inner: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        **more,
    }


K32 = 32768

PUBLISHED = (
    Published(
        name="Llama-3.2-1B",
        config=_llama(2048, 16, 32, 8, 8192, 128256, head_dim=64, tie_word_embeddings=True),
        # One table; each layer: queries and output 2 x 2048 x 2048, keys and values 2 x 2048 x 512,
        # feed-forward 3 x 2048 x 8192, two norms; one norm at the end.
        parameters=128256 * 2048
        + 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048)
        + 2048,
        kv=2 * 2 * 16 * 8 * 64,  # 32 KiB
        said=1.24,
    ),
    Published(
        name="Llama-3.1-8B",
        config=_llama(4096, 32, 32, 8, 14336, 128256, max_position_embeddings=131072),
        parameters=2 * 128256 * 4096
        + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
        + 4096,
        kv=2 * 2 * 32 * 8 * 128,  # 128 KiB
        said=8.03,
    ),
    Published(
        name="Llama-3.1-70B",
        config=_llama(8192, 80, 64, 8, 28672, 128256),
        parameters=2 * 128256 * 8192
        + 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192)
        + 8192,
        kv=2 * 2 * 80 * 8 * 128,  # 320 KiB
        said=70.55,
    ),
    Published(
        name="Llama-3.1-405B",
        config=_llama(16384, 126, 128, 8, 53248, 128256),
        parameters=2 * 128256 * 16384
        + 126 * (2 * 16384 * 16384 + 2 * 16384 * 1024 + 3 * 16384 * 53248 + 2 * 16384)
        + 16384,
        kv=2 * 2 * 126 * 8 * 128,  # 504 KiB
        said=405.85,
    ),
    Published(
        name="Qwen2.5-7B",
        config=_llama(3584, 28, 28, 4, 18944, 152064)
        | {
            "model_type": "qwen2",
            "sliding_window": 131072,
            "use_sliding_window": False,
            "max_window_layers": 28,
        },
        # Queries, keys and values have biases: 3584 + 2 x 512.
        parameters=2 * 152064 * 3584
        + 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3584 + 2 * 512 + 3 * 3584 * 18944 + 2 * 3584)
        + 3584,
        kv=2 * 2 * 28 * 4 * 128,  # 56 KiB; its window is switched off
        said=7.62,
    ),
    Published(
        name="Qwen2.5-72B",
        config=_llama(8192, 80, 64, 8, 29568, 152064) | {"model_type": "qwen2", "use_sliding_window": False},
        parameters=2 * 152064 * 8192
        + 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 8192 + 2 * 1024 + 3 * 8192 * 29568 + 2 * 8192)
        + 8192,
        kv=2 * 2 * 80 * 8 * 128,
        said=72.71,
    ),
    Published(
        name="Qwen3-0.6B",
        config=_llama(1024, 28, 16, 8, 3072, 151936, head_dim=128, tie_word_embeddings=True)
        | {"model_type": "qwen3"},
        # Its heads of 128 together are wider than the hidden size; each head's queries and keys have a norm.
        parameters=151936 * 1024
        + 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 2 * 128 + 3 * 1024 * 3072 + 2 * 1024)
        + 1024,
        kv=2 * 2 * 28 * 8 * 128,  # 112 KiB
        said=0.6,
    ),
    Published(
        name="Qwen3-30B-A3B",
        config=_llama(2048, 48, 32, 4, 6144, 151936, head_dim=128)
        | {
            "model_type": "qwen3_moe",
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        # Each layer: 2 x 2048 x 4096, 2 x 2048 x 512, a router of 128, 128 experts of 3 x 2048 x 768.
        parameters=2 * 151936 * 2048
        + 48 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2 * 128 + 2048 * 128 + 128 * 3 * 2048 * 768 + 2 * 2048)
        + 2048,
        kv=2 * 2 * 48 * 4 * 128,  # 96 KiB
        said=30.53,
    ),
    Published(
        name="Qwen3-235B-A22B",
        config=_llama(4096, 94, 64, 4, 12288, 151936, head_dim=128)
        | {
            "model_type": "qwen3_moe",
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1536,
        },
        parameters=2 * 151936 * 4096
        + 94 * (2 * 4096 * 8192 + 2 * 4096 * 512 + 2 * 128 + 4096 * 128 + 128 * 3 * 4096 * 1536 + 2 * 4096)
        + 4096,
        kv=2 * 2 * 94 * 4 * 128,  # 188 KiB
        said=235.09,
    ),
    Published(
        name="Qwen3-Next-80B-A3B",
        config=_llama(2048, 48, 16, 2, 5120, 151936, head_dim=256)
        | {
            "model_type": "qwen3_next",
            "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_value_head_dim": 128,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        },
        parameters=0,
        # Of 48 layers 12 keep keys.
        kv=2 * 2 * 12 * 2 * 256,  # 24 KiB
        # The others keep 3 columns of a convolution over 2 x 16 x 128 + 32 x 128, and 32 matrices of 128 x 128.
        state=4 * 36 * (3 * (2 * 16 * 128 + 32 * 128) + 32 * 128 * 128),
        long=K32 * 24 * 1024 + 4 * 36 * (3 * 8192 + 524288),
    ),
    Published(
        name="Mistral-7B-v0.1",
        config=_llama(4096, 32, 32, 8, 14336, 32000, sliding_window=4096) | {"model_type": "mistral"},
        parameters=2 * 32000 * 4096
        + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
        + 4096,
        kv=2 * 2 * 32 * 8 * 128,
        # All layers look back 4096.
        long=4096 * 128 * 1024,
        said=7.24,
    ),
    Published(
        name="Mistral-7B-v0.3",
        config=_llama(4096, 32, 32, 8, 14336, 32768, sliding_window=None) | {"model_type": "mistral"},
        parameters=2 * 32768 * 4096
        + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
        + 4096,
        kv=2 * 2 * 32 * 8 * 128,
        said=7.25,
    ),
    Published(
        name="Mixtral-8x7B",
        config=_llama(4096, 32, 32, 8, 14336, 32000, sliding_window=None)
        | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
        parameters=2 * 32000 * 4096
        + 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 8 + 8 * 3 * 4096 * 14336 + 2 * 4096)
        + 4096,
        kv=2 * 2 * 32 * 8 * 128,
        said=46.70,
    ),
    Published(
        name="gemma-2-9b",
        config=_llama(
            3584, 42, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096, tie_word_embeddings=True
        )
        | {"model_type": "gemma2"},
        # Four norms a layer.
        parameters=256000 * 3584
        + 42 * (2 * 3584 * 4096 + 2 * 3584 * 2048 + 3 * 3584 * 14336 + 4 * 3584)
        + 3584,
        kv=2 * 2 * 42 * 8 * 256,  # 336 KiB
        # Every other layer looks back 4096.
        long=2 * 2 * 21 * 8 * 256 * (K32 + 4096),
        said=9.24,
    ),
    Published(
        name="gemma-3-1b",
        config=_llama(1152, 26, 4, 1, 6912, 262144, head_dim=256, sliding_window=512)
        | {"model_type": "gemma3_text", "sliding_window_pattern": 6},
        parameters=262144 * 1152
        + 26 * (2 * 1152 * 1024 + 2 * 1152 * 256 + 2 * 256 + 3 * 1152 * 6912 + 4 * 1152)
        + 1152,
        kv=2 * 2 * 26 * 1 * 256,  # 26 KiB
        # Of 26 layers the 6th, 12th, 18th and 24th see everything.
        long=2 * 2 * 256 * (4 * K32 + 22 * 512),
        said=1.0,
    ),
    Published(
        name="gemma-3-27b",
        # What the language part needs is one level down.
        config={
            "model_type": "gemma3",
            "text_config": _llama(5376, 62, 32, 16, 21504, 262208, head_dim=128, sliding_window=1024)
            | {"model_type": "gemma3_text", "sliding_window_pattern": 6},
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
        },
        parameters=0,
        kv=2 * 2 * 62 * 16 * 128,  # 496 KiB
        # 62 // 6 = 10 layers see everything.
        long=2 * 2 * 16 * 128 * (10 * K32 + 52 * 1024),
    ),
    Published(
        name="DeepSeek-V2-Lite",
        config=_llama(2048, 27, 16, 16, 10944, 102400)
        | {
            "model_type": "deepseek_v2",
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
        },
        # Attention: queries 2048 x 16 x 192, down 2048 x 576 with a norm of 512, up 512 x 16 x 256, out 2048 x 2048.
        # One dense layer, 26 with 64 + 2 experts and a router.
        parameters=2 * 102400 * 2048
        + 27 * (2048 * 16 * 192 + 2048 * 576 + 512 + 512 * 16 * 256 + 2048 * 2048 + 2 * 2048)
        + 3 * 2048 * 10944
        + 26 * (66 * 3 * 2048 * 1408 + 64 * 2048)
        + 2048,
        # One vector of 512 and a rotary part of 64 for all heads, and no values.
        kv=2 * 27 * (512 + 64),  # 30.4 KiB
        said=15.71,
    ),
    Published(
        name="DeepSeek-V3",
        config=_llama(7168, 61, 128, 128, 18432, 129280)
        | {
            "model_type": "deepseek_v3",
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 3,
        },
        # Attention: queries down 7168 x 1536 and up 1536 x 128 x 192, keys and values down 7168 x 576 and up
        # 512 x 128 x 256, out 128 x 128 x 7168; norms. Three dense layers, 58 with 256 + 1 experts and a router.
        parameters=2 * 129280 * 7168
        + 61
        * (
            7168 * 1536
            + 1536
            + 1536 * 128 * 192
            + 7168 * 576
            + 512
            + 512 * 128 * 256
            + 128 * 128 * 7168
            + 2 * 7168
        )
        + 3 * 3 * 7168 * 18432
        + 58 * (257 * 3 * 7168 * 2048 + 256 * 7168 + 256)
        + 7168,
        kv=2 * 61 * (512 + 64),  # 68.6 KiB, where 128 heads of their own would take 4.8 MiB
        said=671.03,
    ),
    Published(
        name="DeepSeek-R1",
        config=_llama(7168, 61, 128, 128, 18432, 129280)
        | {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64},
        parameters=0,
        kv=2 * 61 * (512 + 64),
    ),
    Published(
        name="Phi-3-mini-4k",
        config=_llama(3072, 32, 32, 32, 8192, 32064, sliding_window=2047) | {"model_type": "phi3"},
        parameters=2 * 32064 * 3072 + 32 * (4 * 3072 * 3072 + 3 * 3072 * 8192 + 2 * 3072) + 3072,
        kv=2 * 2 * 32 * 32 * 96,  # 384 KiB: no grouped queries
        long=2047 * 384 * 1024,
        said=3.82,
    ),
    Published(
        name="phi-4",
        config=_llama(5120, 40, 40, 10, 17920, 100352, sliding_window=None) | {"model_type": "phi3"},
        parameters=2 * 100352 * 5120
        + 40 * (2 * 5120 * 5120 + 2 * 5120 * 1280 + 3 * 5120 * 17920 + 2 * 5120)
        + 5120,
        kv=2 * 2 * 40 * 10 * 128,  # 200 KiB
        said=14.66,
    ),
    Published(
        name="gpt-oss-20b",
        config=_llama(2880, 24, 64, 8, 2880, 201088, head_dim=64, sliding_window=128)
        | {
            "model_type": "gpt_oss",
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
        },
        # Biases everywhere; one sink for each head. Experts: 2880 x 5760 + 5760 in, 2880 x 2880 + 2880 out.
        parameters=2 * 201088 * 2880
        + 24
        * (
            2880 * 4096
            + 4096
            + 2 * (2880 * 512 + 512)
            + 4096 * 2880
            + 2880
            + 64
            + 2880 * 32
            + 32
            + 32 * (2880 * 5760 + 5760 + 2880 * 2880 + 2880)
            + 2 * 2880
        )
        + 2880,
        kv=2 * 2 * 24 * 8 * 64,  # 48 KiB
        long=2 * 2 * 8 * 64 * 12 * (K32 + 128),
        said=20.91,
    ),
    Published(
        name="GLM-4-9B-0414",
        config=_llama(4096, 40, 32, 2, 13696, 151552, head_dim=128) | {"model_type": "glm4"},
        # Four norms a layer.
        parameters=2 * 151552 * 4096
        + 40 * (2 * 4096 * 4096 + 2 * 4096 * 256 + 3 * 4096 * 13696 + 4 * 4096)
        + 4096,
        kv=2 * 2 * 40 * 2 * 128,  # 40 KiB
        said=9.40,
    ),
    Published(
        name="c4ai-command-r-v01",
        config=_llama(8192, 40, 64, 64, 22528, 256000, tie_word_embeddings=True) | {"model_type": "cohere"},
        # One norm a layer: attention and feed-forward are side by side.
        parameters=256000 * 8192 + 40 * (4 * 8192 * 8192 + 3 * 8192 * 22528 + 8192) + 8192,
        kv=2 * 2 * 40 * 64 * 128,  # 1.25 MiB: no grouped queries
        said=34.98,
    ),
    Published(
        name="bge-m3",
        config=_llama(1024, 24, 16, 16, 4096, 250002)
        | {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]},
        # Words, 8194 places and one kind; each layer four square matrices and two of 1024 x 4096, all with biases,
        # and two norms with biases; a pooler.
        parameters=(250002 + 8194 + 1) * 1024
        + 2 * 1024
        + 24 * (4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024)
        + 1024 * 1024
        + 1024,
        kv=2 * 2 * 24 * 16 * 64,
        said=0.568,
    ),
    Published(
        name="Qwen2-VL-7B",
        config=_llama(3584, 28, 28, 4, 18944, 152064)
        | {
            "model_type": "qwen2_vl",
            "use_sliding_window": False,
            "vision_config": {"embed_dim": 1280, "depth": 32},
        },
        parameters=0,
        kv=2 * 2 * 28 * 4 * 128,
    ),
    Published(
        name="Llama-4-Scout",
        config={
            "model_type": "llama4",
            "text_config": _llama(5120, 48, 40, 8, 8192, 202048, head_dim=128, attention_chunk_size=8192)
            | {
                "model_type": "llama4_text",
                "intermediate_size_mlp": 16384,
                "num_local_experts": 16,
                "num_experts_per_tok": 1,
            },
        },
        parameters=0,
        kv=2 * 2 * 48 * 8 * 128,  # 192 KiB
        # Three of four layers see a chunk of 8192.
        long=2 * 2 * 8 * 128 * (12 * K32 + 36 * 8192),
    ),
    Published(
        name="Mamba-2.8B",
        config={
            "model_type": "mamba",
            "hidden_size": 2560,
            "num_hidden_layers": 64,
            "state_size": 16,
            "conv_kernel": 4,
            "expand": 2,
            "vocab_size": 50280,
        },
        parameters=0,
        kv=0,
        # 3 columns of a convolution over 5120, and 5120 states of 16.
        state=4 * 64 * (3 * 5120 + 5120 * 16),
        long=4 * 64 * (3 * 5120 + 5120 * 16),
    ),
    Published(
        name="granite-4.0-h-tiny",
        config=_llama(1536, 40, 12, 4, 512, 100352)
        | {
            "model_type": "granitemoehybrid",
            "layer_types": ["attention" if n in (5, 15, 25, 35) else "mamba" for n in range(40)],
            "mamba_d_state": 128,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_n_heads": 48,
            "mamba_d_head": 64,
            "mamba_n_groups": 1,
            "num_local_experts": 64,
            "num_experts_per_tok": 6,
        },
        parameters=0,
        kv=2 * 2 * 4 * 4 * 128,  # 8 KiB: four layers of 40
        # 48 heads of 64; 3 columns over 3072 + 2 x 128, and 3072 states of 128.
        state=4 * 36 * (3 * (3072 + 2 * 128) + 3072 * 128),
        long=K32 * 8 * 1024 + 4 * 36 * (3 * 3328 + 393216),
    ),
)
