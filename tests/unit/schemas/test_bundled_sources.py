"""What a model may say of its source when a plugin carries its files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gpustack.schemas import ModelCreate, ModelPatch, ModelPublic, source_key, source_name


def model(**fields: Any) -> ModelCreate:
    return ModelCreate.model_validate({"name": "m", "source": "bundled", **fields})


def test_the_name_is_enough() -> None:
    assert source_name(model(bundled_name="demo")) == "bundled:demo"


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "bundled_name is missing"),
        ({"bundled_name": "demo", "local_path": "/m.gguf"}, "local_path goes with source"),
        ({"bundled_name": "demo", "huggingface_repo_id": "org/m"}, "huggingface_… fields go with source"),
        (
            {"source": "local_path", "local_path": "/m", "bundled_name": "demo"},
            "bundled_name goes with source",
        ),
        (
            {"source": "huggingface", "huggingface_repo_id": "o/m", "bundled_name": "demo"},
            "bundled_name goes",
        ),
    ],
)
def test_fields_of_another_source_are_refused(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        model(**fields)


def test_equal_names_are_one_source_and_others_are_not() -> None:
    keys = {
        source_key(model(bundled_name="demo")),
        source_key(model(bundled_name="demo", replicas=3)),
        source_key(model(bundled_name="other")),
        source_key(ModelCreate(name="m", local_path="/demo")),
    }
    assert len(keys) == 3


def test_a_model_can_be_moved_to_a_bundled_one() -> None:
    now = datetime.now(UTC)
    old = ModelPublic(id=1, created_at=now, updated_at=now, cluster_id=1, name="m", local_path="/m.gguf")
    patch = ModelPatch.model_validate({"source": "bundled", "local_path": None, "bundled_name": "demo"})
    assert source_name(patch.applied_to(old)) == "bundled:demo"
