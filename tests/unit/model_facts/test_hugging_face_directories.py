"""What is read from a Hugging Face directory, and what is said of one that is no good."""

import json
import struct
from pathlib import Path

import pytest

from gpustack.kit.errors import InvalidInput
from gpustack.worker.facts import read_facts
from support.tiny_models import make_tiny_hf

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 32768,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}


def shard(path: Path, *, size: int = 64, data: int | None = None) -> Path:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * (size if data is None else data))
    return path


def a_model(folder: Path, **changes: object) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    shard(folder / "model.safetensors")
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_facts(path)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_real_model() -> None:
    folder = make_tiny_hf()

    facts = read_facts(folder)

    assert (facts.format, facts.path, facts.architecture) == ("safetensors", str(folder), "llama")
    assert facts.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert (facts.layers, facts.attention_heads, facts.kv_heads, facts.key_length) == (2, 4, 2, 32)
    assert facts.has_chat_template
    assert facts.parameters > 500_000


def test_the_configuration_is_read(tmp_path: Path) -> None:
    facts = read_facts(a_model(tmp_path))

    assert (facts.hidden_size, facts.kv_heads, facts.key_length, facts.layers) == (64, 2, 8, 3)
    assert (facts.quantization, facts.parameters, facts.vocabulary) == ("BF16", 32, 1000)
    assert not facts.has_chat_template


@pytest.mark.parametrize(
    ("architecture", "category"),
    [
        ("LlamaForCausalLM", "llm"),
        ("Gemma3ForConditionalGeneration", "llm"),
        ("WhisperForConditionalGeneration", "speech_to_text"),
        ("BertModel", "embedding"),
        ("XLMRobertaForSequenceClassification", "reranker"),
        ("Qwen3ForSequenceClassification", "reranker"),
        ("SomethingElse", "unknown"),
    ],
)
def test_the_category_follows_the_architecture(tmp_path: Path, architecture: str, category: str) -> None:
    assert read_facts(a_model(tmp_path, architectures=[architecture])).categories == (category,)


def test_sentence_transformers_make_embeddings(tmp_path: Path) -> None:
    a_model(tmp_path)
    (tmp_path / "modules.json").write_text("[]")

    assert read_facts(tmp_path).categories == ("embedding",)


def test_the_language_part_of_a_seeing_model_counts(tmp_path: Path) -> None:
    config = {
        "architectures": ["AForConditionalGeneration"],
        "text_config": CONFIG | {"num_hidden_layers": 7},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shard(tmp_path / "model.safetensors")

    assert read_facts(tmp_path).layers == 7


def test_a_quantized_model_says_how(tmp_path: Path) -> None:
    a_model(tmp_path, quantization_config={"quant_method": "awq", "bits": 4})

    assert read_facts(tmp_path).quantization == "AWQ-Int4"


class TestShards:
    def test_all_shards_of_the_index_count(self, tmp_path: Path) -> None:
        self.indexed(tmp_path, "a.safetensors", "b.safetensors")
        for name in ("a", "b", "unrelated"):
            shard(tmp_path / f"{name}.safetensors")

        facts = read_facts(tmp_path)

        assert facts.parameters == 64
        assert facts.weight_bytes == 2 * (tmp_path / "a.safetensors").stat().st_size

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        self.indexed(tmp_path, "a.safetensors", "b.safetensors")
        shard(tmp_path / "a.safetensors")

        assert "1 shard of 2 missing" in refusal(tmp_path)
        assert "b.safetensors" in refusal(tmp_path)

    def test_a_truncated_shard_is_named(self, tmp_path: Path) -> None:
        a_model(tmp_path)
        path = shard(tmp_path / "model.safetensors", size=3 << 20, data=1 << 20)

        assert f"{path} is truncated: 2.0 MiB are missing" in refusal(tmp_path)

    def test_an_index_may_not_leave_the_directory(self, tmp_path: Path) -> None:
        self.indexed(tmp_path, "../../etc/passwd")

        assert "outside its directory" in refusal(tmp_path)

    def indexed(self, folder: Path, *names: str) -> None:
        (folder / "config.json").write_text(json.dumps(CONFIG))
        weight_map = {f"w{n}": name for n, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "not valid JSON"), (b"[]", "not a JSON object"), (b"[" * 100_000, "not valid JSON")],
)
def test_a_damaged_configuration_is_said(tmp_path: Path, content: bytes, says: str) -> None:
    a_model(tmp_path)
    (tmp_path / "config.json").write_bytes(content)

    assert says in refusal(tmp_path)


def test_directories_without_weights(tmp_path: Path) -> None:
    assert "holds no model" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "but no weights" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "PyTorch pickles only" in refusal(tmp_path)
