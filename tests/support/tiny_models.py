"""Models of a few megabytes with random weights and really trained tokenizers, made on the spot.

They load and answer like real ones; what they say means nothing. Each comes as a function that returns a path
and as a session fixture: ``tiny_gguf``, ``tiny_embedding_gguf``, ``tiny_reranker_gguf``, ``tiny_hf``.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.cache import CACHE, made_once

if TYPE_CHECKING:
    import gguf
    import numpy as np

    Weights = dict[str, np.ndarray]

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 128, 2, 4, 2, 256, 2048
HEAD_SIZE = HIDDEN // HEADS
CHAT_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def make_tiny_hf() -> Path:
    """Return a directory with config.json, tokenizer and model.safetensors of a llama chat model (3.3 MB)."""
    return made_once(CACHE / "models" / _VERSION / "tiny-hf", _write_hf)


def make_tiny_gguf() -> Path:
    """Return the same chat model as one GGUF file."""
    folder = made_once(
        CACHE / "models" / _VERSION / "tiny-gguf", lambda half: _write_llama(half / "tiny.gguf")
    )
    return folder / "tiny.gguf"


def make_tiny_embedding_gguf() -> Path:
    """Return a bert with mean pooling: an embedding model of width 128."""
    folder = CACHE / "models" / _VERSION / "tiny-embedding"
    made_once(folder, lambda half: _write_bert(half / "tiny-embedding.gguf", rank=False))
    return folder / "tiny-embedding.gguf"


def make_tiny_reranker_gguf() -> Path:
    """Return a bert with rank pooling and a head of one output: a reranker."""
    folder = CACHE / "models" / _VERSION / "tiny-reranker"
    made_once(folder, lambda half: _write_bert(half / "tiny-reranker.gguf", rank=True))
    return folder / "tiny-reranker.gguf"


@pytest.fixture(scope="session")
def tiny_hf() -> Path:
    """A Hugging Face directory."""
    return make_tiny_hf()


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """A chat model."""
    return make_tiny_gguf()


@pytest.fixture(scope="session")
def tiny_embedding_gguf() -> Path:
    """An embedding model."""
    return make_tiny_embedding_gguf()


@pytest.fixture(scope="session")
def tiny_reranker_gguf() -> Path:
    """A reranker."""
    return make_tiny_reranker_gguf()


# The chat model -----------------------------------------------------------------------------------------


def _corpus() -> list[str]:
    return [str(path) for path in sorted(Path(os.__file__).parent.glob("*.py"))[:60]]


def _write_hf(folder: Path) -> None:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=list(CHAT_SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train(_corpus(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab_size()
    ids = {token: tokenizer.token_to_id(token) for token in CHAT_SPECIAL}
    _json(folder / "tokenizer_config.json", _tokenizer_config(ids))
    _json(folder / "config.json", _config(vocabulary, ids))
    save_file(_llama_weights(vocabulary), str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _tokenizer_config(ids: dict[str, int]) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(number): {"content": token, "special": True, **flags} for token, number in ids.items()
        },
    }


def _config(vocabulary: int, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": INNER,
        "vocab_size": vocabulary,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _llama_weights(vocabulary: int) -> Weights:
    make = _Random(0)
    weights = {
        "model.embed_tokens.weight": make.random(vocabulary, HIDDEN),
        "model.norm.weight": make.ones(HIDDEN),
        "lm_head.weight": make.random(vocabulary, HIDDEN),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        for name, size in (
            ("q", HIDDEN),
            ("k", KV_HEADS * HEAD_SIZE),
            ("v", KV_HEADS * HEAD_SIZE),
            ("o", HIDDEN),
        ):
            weights[f"{start}self_attn.{name}_proj.weight"] = make.random(size, HIDDEN)
        weights[f"{start}mlp.gate_proj.weight"] = make.random(INNER, HIDDEN)
        weights[f"{start}mlp.up_proj.weight"] = make.random(INNER, HIDDEN)
        weights[f"{start}mlp.down_proj.weight"] = make.random(HIDDEN, INNER)
        weights[f"{start}input_layernorm.weight"] = make.ones(HIDDEN)
        weights[f"{start}post_attention_layernorm.weight"] = make.ones(HIDDEN)
    return weights


_LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _write_llama(path: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    source = make_tiny_hf()
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    added = {each["id"]: each["content"] for each in tokenizer["added_tokens"]}
    tokens = sorted(
        {**tokenizer["model"]["vocab"], **{text: n for n, text in added.items()}}.items(), key=lambda t: t[1]
    )
    writer = _writer(path, "llama", "tiny-random-llama")
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if n in added else gguf.TokenType.NORMAL for _, n in tokens]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    ids = {text: number for number, text in added.items()}
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in load_file(str(source / "model.safetensors")).items():
        writer.add_tensor(*_llama_tensor(name, tensor))
    _finish(writer)


def _llama_tensor(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """Return a tensor's name and content as llama.cpp has them; it orders the rotary halves differently."""
    import numpy as np

    base = name.removesuffix(".weight")
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if base in outer:
        return f"{outer[base]}.weight", tensor
    layer, inner = base.removeprefix("model.layers.").split(".", 1)
    heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(inner)
    if heads:
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, HIDDEN)
        tensor = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))
    return f"blk.{layer}.{_LLAMA_NAMES[inner]}.weight", tensor


# The embedding model and the reranker -------------------------------------------------------------------


def _write_bert(path: Path, *, rank: bool) -> None:
    import gguf

    tokens = _word_pieces()
    writer = _writer(path, "bert", "tiny-random-reranker" if rank else "tiny-random-embedding")
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if rank else gguf.PoolingType.MEAN)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_as_llama_cpp_has_it(token) for token in tokens])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in BERT_SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_type_count(2)
    for add, token in (
        (writer.add_pad_token_id, "[PAD]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_eos_token_id, "[SEP]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_mask_token_id, "[MASK]"),
    ):
        add(BERT_SPECIAL.index(token))
    for name, tensor in _bert_weights(len(tokens), rank=rank).items():
        writer.add_tensor(name, tensor)
    _finish(writer)


def _word_pieces() -> list[str]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=1024, special_tokens=list(BERT_SPECIAL), show_progress=False
    )
    tokenizer.train(_corpus(), trainer)
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda each: each[1])]


def _as_llama_cpp_has_it(token: str) -> str:
    """Mark starts of words instead of continuations."""
    if token in BERT_SPECIAL:
        return token
    return token.removeprefix("##") if token.startswith("##") else f"\u2581{token}"


def _bert_weights(vocabulary: int, *, rank: bool) -> Weights:
    make = _Random(1)
    weights = {
        "token_embd.weight": make.random(vocabulary, HIDDEN),
        "token_types.weight": make.random(2, HIDDEN),
        "position_embd.weight": make.random(CONTEXT, HIDDEN) * 0.1,
        "token_embd_norm.weight": make.ones(HIDDEN),
        "token_embd_norm.bias": make.zeros(HIDDEN),
    }
    for layer in range(LAYERS):
        sizes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (HIDDEN, HIDDEN))
        sizes |= {"ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
        for name, (out, inside) in sizes.items():
            weights[f"blk.{layer}.{name}.weight"] = make.random(out, inside)
            weights[f"blk.{layer}.{name}.bias"] = make.zeros(out)
        for name in ("attn_output_norm", "layer_output_norm"):
            weights[f"blk.{layer}.{name}.weight"] = make.ones(HIDDEN)
            weights[f"blk.{layer}.{name}.bias"] = make.zeros(HIDDEN)
    if rank:
        weights |= {"cls.weight": make.random(HIDDEN, HIDDEN), "cls.bias": make.zeros(HIDDEN)}
        weights |= {"cls.output.weight": make.random(1, HIDDEN), "cls.output.bias": make.zeros(1)}
    return weights


# What both need -----------------------------------------------------------------------------------------


class _Random:
    """Weights that are the same on every run."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self._numpy = np
        self._generator = np.random.default_rng(seed)

    def random(self, *shape: int) -> np.ndarray:
        return (self._generator.standard_normal(shape) * 0.05).astype(self._numpy.float32)

    def ones(self, size: int) -> np.ndarray:
        return self._numpy.ones(size, self._numpy.float32)

    def zeros(self, size: int) -> np.ndarray:
        return self._numpy.zeros(size, self._numpy.float32)


def _writer(path: Path, architecture: str, name: str) -> gguf.GGUFWriter:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    return writer


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))
