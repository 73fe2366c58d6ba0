"""Wordings are varied as people vary them, and the same for the same seed."""

from __future__ import annotations

from random import Random

from noise import Noise


def variations(seed: int, text: str = "How do I stop GPUStack on my laptop?", count: int = 200) -> list[str]:
    noise = Noise(Random(seed))
    return [noise.vary(text) for _ in range(count)]


def test_the_same_seed_gives_the_same_texts() -> None:
    assert variations(1) == variations(1) != variations(2)


def test_most_are_different_and_none_is_empty() -> None:
    made = variations(3)
    assert len(set(made)) > 120
    assert all(each.strip() for each in made)
    assert all(Noise(Random(seed)).vary("?") for seed in range(50))


def test_phrases_are_exchanged_for_their_like() -> None:
    made = " ".join(variations(4)).lower()
    assert "shut down" in made
    assert "notebook" in made


def test_a_wish_for_brevity_is_said() -> None:
    noise = Noise(Random(5))
    made = {noise.briefly("What is a token?") for _ in range(50)}
    assert all("token" in each for each in made)
    assert len(made) > 5
