"""What a model may name on the hub: its parts become paths in the cache."""

from __future__ import annotations

import pytest

from gpustack.schemas import ModelCreate, Source


def model(**fields: str) -> ModelCreate:
    return ModelCreate(
        name="m",
        source=Source.HUGGINGFACE,
        **{"huggingface_repo_id": "org/tiny", **fields},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "revision",
    ["../../../../escaped", "/etc/escaped", "a/../b", "..", ".", "a//b", "a/", "a\\..\\b", "a\0b", "a b"],
)
def test_a_revision_that_leaves_its_folder_is_refused(revision: str) -> None:
    with pytest.raises(ValueError, match="is no branch, tag or commit"):
        model(huggingface_revision=revision)


@pytest.mark.parametrize("revision", ["", "main", "refs/pr/1", "v1.0..rc", "a" * 40])
def test_branches_tags_and_commits_are_taken(revision: str) -> None:
    assert model(huggingface_revision=revision).huggingface_revision == revision


def test_a_repository_ends_with_its_name() -> None:
    with pytest.raises(ValueError, match="is not organisation/name"):
        model(huggingface_repo_id="org/tiny/../other")
