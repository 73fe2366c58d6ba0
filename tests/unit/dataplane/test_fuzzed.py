"""Every input that fuzzing has found worth keeping, through what has to hold of each parser."""

from __future__ import annotations

import pytest

from support.fuzzing import CORPUS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_has_found_before_breaks_nothing(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds():
        target.run(seed)
    for path in target.stored():
        try:
            target.run(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(CORPUS)}: {error!r}") from error


def test_the_corpus_is_small_and_holds_nothing_twice() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
    contents = [path.read_bytes() for target in TARGETS.values() for path in target.stored()]
    assert sum(map(len, contents)) < 400_000
    for target in TARGETS.values():
        stored = [path.read_bytes() for path in target.stored()]
        assert len(stored) == len(set(stored))
