"""What the files of a LoRA adapter say, and what is said of those that say nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpustack.kit.errors import InvalidInput
from gpustack.worker.facts import read_adapters_within
from gpustack.worker.facts.adapters import read_adapter


def an_adapter(folder: Path, content: object) -> str:
    (folder / "adapter_config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 16}, 16),
        ({"r": 8, "rank_pattern": {"q_proj": 64, "k_proj": 4}}, 64),
        ({"rank_pattern": {"a": 2}}, 2),
    ],
)
def test_the_rank_is_the_highest(tmp_path: Path, config: object, rank: int) -> None:
    assert read_adapter(an_adapter(tmp_path, config)).rank == rank


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LORA"}, "names no rank"),
        ({"r": "16"}, "names no rank"),
        ({"r": -1}, "names no rank"),
        ("{", "is damaged"),
        ([], "is damaged"),
    ],
)
def test_what_says_nothing_is_refused_in_a_line(tmp_path: Path, config: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read_adapter(an_adapter(tmp_path, config))


async def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has no adapter_config"):
        await read_adapters_within([str(tmp_path)])
    with pytest.raises(InvalidInput, match="does not exist on this worker"):
        await read_adapters_within([str(tmp_path / "gone")])
    assert await read_adapters_within([]) == ()
