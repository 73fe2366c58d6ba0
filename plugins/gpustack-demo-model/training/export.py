"""Writes the GGUF files that are shipped: ``python export.py CHAT ENCODER OUT``, the folders of the two trainings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import corpus
import gguf
import numpy as np
import torch
from chat_network import ChatNetwork, Shape
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokens import IM_END, IM_START

#: What is said about where the weights come from; a test compares it with the files here.
ORIGIN = "gpustack.demo"
#: Scores are multiplied by this. An engine that draws at a temperature of 0.8, as most do unasked, then draws as at 0.2: the
#: answers of this model are known by heart, and a word drawn from the second likeliest would lead into another answer.
SHARPER = 4.0
#: Natural logarithm of how much likelier the answer to everything else is made where answers begin. Set by ``practice``: it costs one
#: right answer in a hundred on topic, and saves eight wrong ones in a hundred off topic, which would sound as sure as any.
CAUTION = 3.0
#: System messages are left out: in training they were too few to be learnt. Heeded, they shortened answers unasked, and a name that one
#: gave came out as another.
CHAT_TEMPLATE = (
    # A template that does not look at them has them put in front of the question, by llama.cpp.
    "{% for m in messages %}{% if m['role'] == 'system' %}{% set unsaid = m['content'] | length %}{% else %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CHAT_NAMES = {
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


def main() -> None:
    """Write the three files."""
    chat, encoder, out = map(Path, sys.argv[1:])
    write_chat(chat, out / "demo.gguf")
    write_encoder(encoder, "embedding", out / "demo-embedding.gguf")
    write_encoder(encoder, "reranker", out / "demo-reranker.gguf")


def write_chat(source: Path, path: Path) -> None:
    """Write the chat model as a Llama with 8-bit weights."""
    report = json.loads((source / "training.json").read_text())
    shape = report["shape"]
    writer = _writer(
        path, "llama", "GPUStack demo", "A tiny chat model about GPUStack, and nothing else", report
    )
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(shape["epsilon"])
    writer.add_rope_freq_base(shape["rope_base"])
    head = shape["hidden"] // shape["heads"]
    for add in (writer.add_rope_dimension_count, writer.add_key_length, writer.add_value_length):
        add(head)
    writer.add_vocab_size(shape["vocabulary"])
    _chat_tokenizer(writer, json.loads((source / "tokenizer.json").read_text()))
    weights = load_file(source / "weights.safetensors")
    _be_cautious(source, weights, shape)
    for name, tensor in sorted(weights.items()):
        _put(writer, *_chat_tensor(name.removesuffix(".weight"), tensor, shape))
    _finish(writer)


def _chat_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    special = {each["id"]: each["content"] for each in tokenizer["added_tokens"]}
    tokens = {number: text for text, number in tokenizer["model"]["vocab"].items()} | special
    kinds = [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in range(len(tokens))]
    numbers = {text: number for number, text in special.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens[number] for number in range(len(tokens))])
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_bos_token_id(numbers["<|endoftext|>"])
    writer.add_eos_token_id(numbers["<|im_end|>"])
    writer.add_pad_token_id(numbers["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _be_cautious(source: Path, weights: dict[str, np.ndarray], shape: dict[str, Any]) -> None:
    """Make the first token of the answer to everything else likelier by CAUTION where an answer begins.

    The token's row is moved along the mean state before answers. Elsewhere it is too unlikely for that to matter.
    """
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    network = ChatNetwork(Shape(**shape))
    network.load_state_dict({name: torch.from_numpy(each) for name, each in weights.items()}, strict=False)
    texts = [topic.wordings[0] for topic in corpus.topics()]
    texts += corpus.off_topic()[:: len(corpus.off_topic()) // len(texts)]
    total = torch.zeros(shape["hidden"])
    with torch.no_grad():
        for text in texts:
            ids = tokenizer.encode(f"{IM_START}user\n{text}{IM_END}\n{IM_START}assistant\n").ids
            total += network.eval()(torch.tensor([ids]))[-1][0, -1]
    mean = (total / len(texts)).numpy()
    first = tokenizer.encode(corpus.OFF_TOPIC_ANSWER).ids[0]
    weights["embed_tokens.weight"][first] += CAUTION * mean / float(mean @ mean)


def _chat_tensor(name: str, tensor: np.ndarray, shape: dict[str, Any]) -> tuple[str, np.ndarray]:
    """Return a tensor's name and content as llama.cpp has them; it orders the halves of rotated heads differently."""
    if name == "embed_tokens":
        return "token_embd", tensor
    if name == "norm":
        return "output_norm", tensor * SHARPER
    _, layer, inner = name.split(".", 2)
    heads = {"self_attn.q_proj": shape["heads"], "self_attn.k_proj": shape["kv_heads"]}.get(inner)
    if heads:
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
        tensor = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))
    return f"blk.{layer}.{_CHAT_NAMES[inner]}", tensor


def write_encoder(source: Path, kind: str, path: Path) -> None:
    """Write the embedding model or the reranker as a BERT with 8-bit weights."""
    report = json.loads((source / "training.json").read_text())
    shape = report["shape"]
    what = f"A tiny {kind} model for questions about GPUStack"
    writer = _writer(path, "bert", f"GPUStack demo {kind}", what, report)
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])
    writer.add_layer_norm_eps(shape["epsilon"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if kind == "reranker" else gguf.PoolingType.MEAN)
    writer.add_vocab_size(shape["vocabulary"])
    _encoder_tokenizer(writer, json.loads((source / "tokenizer.json").read_text()))
    for name, tensor in sorted(load_file(source / f"{kind}.safetensors").items()):
        base, ending = name.rsplit(".", 1)
        _put(writer, base.replace("cls_output", "cls.output"), tensor, ending)
    _finish(writer)


def _encoder_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    special = {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    tokens = [text for text, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda each: each[1])]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text if text in special else _marked(text) for text in tokens])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL for text in tokens]
    )
    writer.add_token_type_count(2)
    for add, text in (
        (writer.add_pad_token_id, "[PAD]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_eos_token_id, "[SEP]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_mask_token_id, "[MASK]"),
    ):
        add(special[text])


def _marked(text: str) -> str:
    """Mark starts of words instead of continuations, as llama.cpp does."""
    return text.removeprefix("##") if text.startswith("##") else f"\u2581{text}"


def _writer(path: Path, architecture: str, name: str, what: str, report: dict[str, Any]) -> gguf.GGUFWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_description(what)
    writer.add_author("The GPUStack authors")
    writer.add_license("Apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(f"{ORIGIN}.corpus_sha256", report["corpus"])
    writer.add_string(f"{ORIGIN}.scripts_sha256", report["scripts"])
    writer.add_string(f"{ORIGIN}.export_sha256", corpus.scripts_digest(("export.py",)))
    return writer


def _put(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, ending: str = "weight") -> None:
    """Add a tensor, in 8 bits where it is a matrix that is multiplied with."""
    plain = tensor.ndim < 2 or name in ("position_embd", "token_types") or tensor.shape[0] == 1
    tensor = np.ascontiguousarray(tensor.astype(np.float32))
    if plain:
        writer.add_tensor(f"{name}.{ending}", tensor)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(f"{name}.{ending}", gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
