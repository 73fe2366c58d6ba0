"""A Hugging Face directory: ``config.json`` and its companions beside safetensors weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpustack.kit.errors import InvalidInput
from gpustack.plugin import Category, ModelFacts
from gpustack.worker.facts.hf_memory import memory_facts, number
from gpustack.worker.facts.json_files import read_json, section
from gpustack.worker.facts.reader import Opener, clean, open_local, whole
from gpustack.worker.facts.safetensors import Weights, read_weights

_RERANKERS = ("ForSequenceClassification", "ForRanking")
_SPEECH_TO_TEXT = ("Whisper", "Speech2Text", "Wav2Vec2", "VoxtralRealtime", "Parakeet")
_TEXT_TO_SPEECH = ("Bark", "SpeechT5ForTextToSpeech", "Vits", "Csm", "ParlerTTS", "Kokoro")
_LLMS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ForImageTextToText")


def is_hf_dir(folder: Path) -> bool:
    """Tell whether ``folder`` looks like a model in Hugging Face's layout."""
    return (folder / "config.json").is_file() or (folder / "model_index.json").is_file()


def read_hf_dir(folder: Path, opener: Opener = open_local) -> ModelFacts:
    """Return the facts of the model in ``folder``.

    Raises InvalidInput when files are missing or damaged; OSError passes through.
    """
    if (folder / "model_index.json").is_file():
        return _pipeline(folder, opener)
    config = read_json(folder / "config.json")
    if (weights := read_weights(folder, opener)) is None:
        raise InvalidInput(_no_weights(folder))
    # Models that also see or hear keep the figures of their language part one level down.
    text = section(config, "text_config") or section(config, "llm_config") or config
    return _facts(folder, config, text, weights)


def _no_weights(folder: Path) -> str:
    for pattern in ("*.bin", "*.pt", "*.pth"):
        if any(folder.glob(pattern)):
            return f"{folder} holds weights as PyTorch pickles only; convert them to safetensors"
    return f"{folder} has a config.json but no weights (*.safetensors); copy or download the rest"


def _facts(folder: Path, config: dict[str, Any], text: dict[str, Any], weights: Weights) -> ModelFacts:
    heads = number(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = number(text, "hidden_size", "n_embd", "d_model", "dim")
    key, value, kv_heads = _cache_shape(text, heads, hidden)
    layers = number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return ModelFacts(
        format="safetensors",
        path=str(folder),
        weight_bytes=weights.size,
        architecture=clean(config.get("model_type")) or clean(_first_architecture(config)),
        name=clean(config.get("_name_or_path")) or clean(folder.name),
        quantization=_quantization(config, text) or clean(weights.dtype),
        parameters=weights.parameters,
        context_length=number(
            text,
            "max_position_embeddings",
            "n_positions",
            "max_sequence_length",
            "seq_length",
            "max_seq_len",
            "n_ctx",
        ),
        layers=layers,
        hidden_size=hidden,
        attention_heads=heads,
        kv_heads=kv_heads,
        key_length=key,
        value_length=value,
        vocabulary=number(text, "vocab_size") or number(config, "vocab_size"),
        categories=(_category(folder, config),),
        has_chat_template=_has_chat_template(folder),
        shard_bytes=weights.sizes,
        **weights.sums.facts(),
        **memory_facts(text, layers),
    )


def _cache_shape(text: dict[str, Any], heads: int, hidden: int) -> tuple[int, int, int]:
    """Return length of a key, of a value, and how many of both a layer keeps for a token."""
    if rank := whole(text.get("kv_lora_rank")):
        # Multi-head latent attention keeps one compressed vector and the rotary part for all heads.
        return rank + whole(text.get("qk_rope_head_dim")), 0, 1
    size = number(text, "global_head_dim", "head_dim") or (hidden // heads if heads else 0)
    kv_heads = heads
    for name in (
        "num_global_key_value_heads",
        "num_key_value_heads",
        "num_kv_heads",
        "multi_query_group_num",
    ):
        if found := number(text, name):
            kv_heads = found
            break
    if text.get("multi_query") is True and "num_kv_heads" not in text:
        kv_heads = 1
    return size, number(text, "v_head_dim") or size, kv_heads


def _quantization(config: dict[str, Any], text: dict[str, Any]) -> str:
    quant = section(config, "quantization_config") or section(text, "quantization_config")
    method = clean(quant.get("quant_method"), limit=32).upper()
    if not method:
        return (
            clean(str(text.get("dtype") or text.get("torch_dtype") or ""), limit=16)
            .upper()
            .replace("FLOAT", "F")
        )
    bits = whole(quant.get("bits") or quant.get("w_bit"))
    return f"{method}-Int{bits}" if bits else method


def _first_architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _category(folder: Path, config: dict[str, Any]) -> Category:
    name = _first_architecture(config)
    if name.endswith(_RERANKERS):
        return "reranker"
    if name.startswith(_SPEECH_TO_TEXT):
        return "speech_to_text"
    if name.startswith(_TEXT_TO_SPEECH):
        return "text_to_speech"
    if (folder / "modules.json").is_file():
        return "embedding"
    if name.endswith(_LLMS):
        return "llm"
    if name.endswith(("Model", "ForMaskedLM", "EncoderModel")):
        return "embedding"
    return "unknown"


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))


def _pipeline(folder: Path, opener: Opener) -> ModelFacts:
    """Return the facts of an image model: a diffusers directory with a folder for each part."""
    index = read_json(folder / "model_index.json")
    parts = [
        weights for sub in sorted(folder.iterdir()) if sub.is_dir() and (weights := read_weights(sub, opener))
    ]
    if not parts:
        raise InvalidInput(f"{folder} has a model_index.json but no weights; copy or download the rest")
    return ModelFacts(
        format="safetensors",
        path=str(folder),
        weight_bytes=sum(part.size for part in parts),
        architecture=clean(index.get("_class_name")),
        name=clean(folder.name),
        quantization=clean(parts[0].dtype),
        parameters=sum(part.parameters for part in parts),
        categories=("image",),
    )
