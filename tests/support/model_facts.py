"""What is known of some models, as their files say it."""

from __future__ import annotations

from gpustack.plugin import ModelFacts

MIB, GIB = 1 << 20, 1 << 30
LLAMA_8B = ModelFacts(
    format="gguf",
    path="/models/llama-8b.gguf",
    weight_bytes=int(4.58 * GIB),
    architecture="llama",
    context_length=131072,
    layers=32,
    hidden_size=4096,
    attention_heads=32,
    kv_heads=8,
    key_length=128,
    value_length=128,
    vocabulary=128256,
    categories=("llm",),
)
BERT = ModelFacts(
    format="gguf",
    path="/models/bert.gguf",
    weight_bytes=133 * MIB,
    architecture="bert",
    context_length=512,
    layers=12,
    hidden_size=768,
    attention_heads=12,
    vocabulary=30522,
    categories=("embedding",),
)
