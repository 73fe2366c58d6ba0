"""What is read from a GGUF file, and what is said of one that is no good."""

from pathlib import Path

import pytest

from gpustack.kit.errors import InvalidInput
from gpustack.worker.facts import read_facts
from support.gguf_bytes import a_gguf, gguf
from support.tiny_models import make_tiny_embedding_gguf, make_tiny_gguf, make_tiny_reranker_gguf

LLAMA = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 15,
    "llama.context_length": 4096,
    "llama.block_count": 4,
    "llama.embedding_length": 512,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
}


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_facts(path)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_real_chat_model() -> None:
    path = make_tiny_gguf()

    facts = read_facts(path)

    assert facts.format == "gguf"
    assert facts.path == str(path)
    assert facts.weight_bytes == path.stat().st_size
    assert (facts.architecture, facts.layers, facts.hidden_size) == ("llama", 2, 128)
    assert (facts.attention_heads, facts.kv_heads, facts.key_length, facts.value_length) == (4, 2, 32, 32)
    assert facts.context_length == 2048
    assert facts.categories == ("llm",)
    assert facts.has_chat_template
    assert facts.parameters > 500_000
    assert facts.vocabulary > 1000


def test_real_embedding_and_reranker_models() -> None:
    assert read_facts(make_tiny_embedding_gguf()).categories == ("embedding",)
    assert read_facts(make_tiny_reranker_gguf()).categories == ("reranker",)


def test_metadata_is_read(tmp_path: Path) -> None:
    facts = read_facts(a_gguf(tmp_path / "m.gguf", LLAMA))

    assert (facts.name, facts.quantization, facts.vocabulary, facts.parameters) == ("Tiny", "Q4_K_M", 3, 128)
    assert facts.key_length == 64


@pytest.mark.parametrize(
    ("extra", "category"),
    [
        ({"llama.pooling_type": 0}, "llm"),
        ({"llama.pooling_type": 3}, "embedding"),
        ({"llama.pooling_type": 4}, "reranker"),
        ({"general.architecture": "nomic-bert"}, "embedding"),
        ({"general.architecture": "flux"}, "image"),
    ],
)
def test_the_category_follows_pooling_and_architecture(tmp_path: Path, extra: dict, category: str) -> None:
    assert read_facts(a_gguf(tmp_path / "m.gguf", LLAMA | extra)).categories == (category,)


def test_kv_heads_that_differ_by_layer_are_never_underrated(tmp_path: Path) -> None:
    facts = read_facts(
        a_gguf(tmp_path / "m.gguf", LLAMA | {"llama.attention.head_count_kv": [4, 1, 4, 1, 1]})
    )

    assert facts.kv_heads == 3  # 11 in 5 layers


def test_without_a_file_type_the_commonest_tensor_type_counts(tmp_path: Path) -> None:
    tensors = [("a", (32, 1), 0, 128), ("b", (256, 4), 12, 576)]
    path = a_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, tensors=tensors)

    assert read_facts(path).quantization == "Q4_K"


def test_a_tensor_type_that_is_not_known_yet_is_no_obstacle(tmp_path: Path) -> None:
    path = a_gguf(tmp_path / "m.gguf", LLAMA, tensors=[("a", (32, 1), 999, 128)])

    assert read_facts(path).parameters == 32


def test_version_2_is_read_too(tmp_path: Path) -> None:
    assert read_facts(a_gguf(tmp_path / "m.gguf", LLAMA, version=2)).layers == 4


def test_missing_bytes_are_counted(tmp_path: Path) -> None:
    tensors = [("a", (1024, 4096), 0, 16 << 20)]
    path = a_gguf(tmp_path / "m.gguf", LLAMA, tensors=tensors, data=4 << 20)

    assert "is truncated: 12.0 MiB are missing" in refusal(path)


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    whole, path = gguf(LLAMA), tmp_path / "m.gguf"

    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"hello world, I am text", "it starts with 'hello world, I a'; GPUStack reads GGUF files"),
        (b"\x7fELF\x02\x01\x01\0\0\0\0\0", "it starts with bytes 7f 45 4c 46"),
        (gguf(LLAMA, version=1), "outdated GGUF version 1"),
        (gguf(LLAMA, version=3 << 24), "big-endian"),
        (gguf(LLAMA, version=77), "GGUF version 77"),
        (gguf({"general.name": "x"}), "does not name its architecture"),
        (gguf(LLAMA, tensors=()), "only a vocabulary"),
        (gguf({"general.architecture": "clip"}), "mmproj"),
        (gguf(LLAMA | {"general.type": "adapter"}), "LoRA adapter"),
        (gguf(LLAMA | {"split.count": 3}), "one of 3 parts"),
        (gguf(LLAMA | {"general.alignment": 33}), "alignment"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)

    message = refusal(path)

    assert says in message
    assert str(path) in message


class TestSplitModels:
    def parts(self, folder: Path, *numbers: int, count: int = 3) -> list[Path]:
        paths = []
        for number in numbers:
            own = LLAMA if number == 1 else {}
            meta = {**own, "split.no": number - 1, "split.count": count}
            paths.append(a_gguf(folder / f"big-{number:05d}-of-{count:05d}.gguf", meta))
        return paths

    @pytest.mark.parametrize("named", [0, 1, 2])
    def test_any_part_stands_for_the_whole(self, tmp_path: Path, named: int) -> None:
        paths = self.parts(tmp_path, 1, 2, 3)

        facts = read_facts(paths[named])

        assert facts.path == str(paths[0])
        assert facts.weight_bytes == sum(path.stat().st_size for path in paths)
        assert facts.parameters == 3 * 128

    def test_the_directory_stands_for_the_whole(self, tmp_path: Path) -> None:
        paths = self.parts(tmp_path, 1, 2, 3)

        assert read_facts(tmp_path).path == str(paths[0])

    def test_a_missing_part_is_named(self, tmp_path: Path) -> None:
        paths = self.parts(tmp_path, 1, 3)

        assert "1 part of 3 missing" in refusal(paths[0])
        assert "big-00002-of-00003.gguf" in refusal(tmp_path)

    def test_a_truncated_later_part_is_named(self, tmp_path: Path) -> None:
        paths = self.parts(tmp_path, 1, 2, 3)
        paths[2].write_bytes(paths[2].read_bytes()[:-40])

        assert f"{paths[2]} is truncated: 40 B" in refusal(paths[0])
