"""The golden table: published models through the reader of their files and the formulas, against sums by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from gpustack.plugin import ModelFacts
from gpustack.plugin.memory import Cache, bytes_per_token, cache_bytes, weight_bytes
from gpustack.worker.facts import read_facts
from support.published_models import PUBLISHED, Published

ALL = pytest.mark.parametrize("model", PUBLISHED, ids=lambda each: each.name)
CHUNK = 1 << 40


def facts_of(folder: Path, model: Published) -> ModelFacts:
    """Return what is read of the model, with one sparse file that has as many weights."""
    (folder / "config.json").write_text(json.dumps({"architectures": ["XForCausalLM"]} | model.config))
    size = 2 * (model.parameters or 1)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return read_facts(folder)


@ALL
def test_one_token(tmp_path: Path, model: Published) -> None:
    assert bytes_per_token(facts_of(tmp_path, model)) == model.kv


@ALL
def test_weights(tmp_path: Path, model: Published) -> None:
    facts = facts_of(tmp_path, model)

    assert weight_bytes(facts) == 2 * (model.parameters or 1)
    if model.said:
        assert model.parameters / 1e9 == pytest.approx(model.said, rel=0.01)


@ALL
def test_a_long_request(tmp_path: Path, model: Published) -> None:
    facts = facts_of(tmp_path, model)
    expected = 32768 * model.kv if model.long is None else model.long

    assert cache_bytes(facts, Cache(context=32768, page=1)) == expected


@ALL
def test_states_do_not_grow(tmp_path: Path, model: Published) -> None:
    facts = facts_of(tmp_path, model)

    assert 4 * facts.state_elements == model.state
    grown = cache_bytes(facts, Cache(context=1, page=1, sequences=3)) - 3 * model.kv
    assert grown == 3 * model.state


@ALL
def test_eight_bits_are_half_of_sixteen(tmp_path: Path, model: Published) -> None:
    facts = facts_of(tmp_path, model)

    assert 2 * bytes_per_token(facts, "fp8", "fp8") == model.kv
