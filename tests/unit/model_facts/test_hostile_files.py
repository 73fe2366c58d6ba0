"""Whatever a file holds, the answer is facts or one line, soon and in little memory."""

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpustack.kit.errors import InvalidInput
from gpustack.plugin import ModelFacts
from gpustack.worker.facts import read_facts
from support.gguf_bytes import gguf, text

CALM = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
WHOLE = gguf(
    {
        "general.architecture": "llama",
        "llama.attention.head_count_kv": [1, 2, 3],
        "tokenizer.ggml.tokens": ["a", "bc"],
        "x": 1.5,
        "y": True,
    }
)
NUMBERS = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1, 2**63, 2**64 - 1]))
MEMORY = 4 << 20


def outcome(path: Path) -> ModelFacts | str:
    tracemalloc.start()
    try:
        facts = read_facts(path)
        assert isinstance(facts, ModelFacts)
        return facts
    except InvalidInput as error:
        message = error.message
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY
    assert "\n" not in message
    return message


@CALM
@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8)), max_size=4)
)
def test_a_gguf_file_with_changed_bytes(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(WHOLE)
    for at, new in changes:
        data[at : at + len(new)] = new
    (tmp_path / "m.gguf").write_bytes(data)

    outcome(tmp_path / "m.gguf")


@CALM
@given(rest=st.binary(max_size=400), entries=NUMBERS, tensors=NUMBERS)
def test_a_gguf_file_of_noise(tmp_path: Path, rest: bytes, entries: int, tensors: int) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors % 2**64, entries % 2**64)
    (tmp_path / "m.gguf").write_bytes(head + rest)

    outcome(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [0, 4, 8, 9, 12])
@pytest.mark.parametrize("length", [2**20, 2**32, 2**63, 2**64 - 1])
def test_lengths_are_not_believed(tmp_path: Path, kind: int, length: int) -> None:
    path = tmp_path / "m.gguf"
    value = struct.pack("<IIQ", 9, kind, length)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("a") + value)

    assert isinstance(outcome(path), str)


def test_arrays_in_arrays_end_somewhere(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    nested = struct.pack("<IQ", 9, 1) * 5000
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 9) + nested)

    assert isinstance(outcome(path), str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "architectures",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "text_config",
        "quantization_config",
        "torch_dtype",
        "kv_lora_rank",
        "model_type",
        "vocab_size",
    ]
)


@CALM
@given(config=st.dictionaries(FIELDS, JSON, max_size=6), tokenizer=JSON, index=JSON, header=JSON)
def test_a_directory_of_noise(
    tmp_path: Path, config: object, tokenizer: object, index: object, header: object
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    data = json.dumps({"w": header}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)

    outcome(tmp_path)


@CALM
@given(shape=JSON, offsets=JSON, dtype=JSON)
def test_a_shard_with_a_header_of_noise(
    tmp_path: Path, shape: object, offsets: object, dtype: object
) -> None:
    (tmp_path / "config.json").write_text("{}")
    header = {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    data = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)

    outcome(tmp_path)


@CALM
@given(data=st.binary(max_size=200))
def test_a_shard_of_noise(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(data)

    outcome(tmp_path)
