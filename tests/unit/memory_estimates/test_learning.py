"""How measured peaks correct the next estimate."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import GpuDevice, ModelFacts, ResourceClaim
from gpustack.plugin.memory import Learned, arguments_digest, corrected, learn
from gpustack.plugin.memory.learning import MOST_LOWERED, MOST_RAISED

MODEL = ModelFacts(format="gguf", path="/m", weight_bytes=1000, layers=4, hidden_size=8)
GPU = GpuDevice(uuid="a", index=0, vendor="nvidia", name="H100", memory_total=80, type="cuda")
sizes = st.integers(0, 1 << 45)
claims = st.builds(ResourceClaim, ram=st.integers(1, 1 << 45), vram=sizes, gpus=st.integers(0, 8))
peaks = st.builds(Learned, ram=sizes, vram=sizes)


def test_nothing_learned_changes_nothing() -> None:
    claim = ResourceClaim(ram=100, vram=200, gpus=1)

    assert corrected(claim, None) == claim
    assert corrected(claim, Learned()) == claim


def test_more_than_estimated_is_claimed_with_room() -> None:
    assert corrected(ResourceClaim(ram=1000), Learned(ram=2000)).ram == 2060


def test_gpu_memory_is_lowered_a_little_and_ram_not() -> None:
    claim = corrected(ResourceClaim(ram=1000, vram=1000, gpus=1), Learned(ram=10, vram=10))

    assert (claim.ram, claim.vram) == (1000, 850)


@given(claims, peaks)
def test_a_correction_is_bounded(claim: ResourceClaim, learned: Learned) -> None:
    new = corrected(claim, learned)

    assert claim.ram <= new.ram <= claim.ram * MOST_RAISED
    assert claim.vram * (1 - MOST_LOWERED) <= new.vram <= claim.vram * MOST_RAISED
    assert (new.gpus, bool(new.vram)) == (claim.gpus, bool(claim.vram))


@given(claims, peaks)
def test_never_below_what_was_measured(claim: ResourceClaim, learned: Learned) -> None:
    new = corrected(claim, learned)

    assert new.ram >= min(learned.ram, int(claim.ram * MOST_RAISED))
    if claim.vram:
        assert new.vram >= min(learned.vram, int(claim.vram * MOST_RAISED))


@given(claims, peaks, peaks)
def test_a_higher_peak_never_claims_less(claim: ResourceClaim, one: Learned, other: Learned) -> None:
    both = Learned(ram=max(one.ram, other.ram), vram=max(one.vram, other.vram))
    # Without any peak the estimate stands.
    if one.vram:
        assert corrected(claim, both).vram >= corrected(claim, one).vram
    assert corrected(claim, both).ram >= corrected(claim, one).ram


@given(peaks, peaks)
def test_a_peak_of_the_same_start_only_rises(before: Learned, now: Learned) -> None:
    after = learn(before, now, new_start=False)

    assert after.ram == max(before.ram, now.ram)
    assert after.vram == max(before.vram, now.vram)
    assert after.starts == before.starts


@given(peaks, peaks)
def test_a_new_start_forgets_slowly(before: Learned, now: Learned) -> None:
    after = learn(before, now, new_start=True)

    assert now.ram <= after.ram <= max(before.ram, now.ram)
    assert after.ram >= before.ram * 0.9 - 1
    assert after.starts == before.starts + 1


def test_after_many_starts_an_old_peak_is_gone() -> None:
    known = learn(None, Learned(ram=2000), new_start=True)
    for _ in range(60):
        known = learn(known, Learned(ram=1000), new_start=True)

    assert 1000 <= known.ram < 1020
    assert known.starts == 61


def test_a_digest_is_of_all_that_an_estimate_depends_on() -> None:
    first = arguments_digest(MODEL, ["--ctx-size=4096"], [GPU])
    others = [
        arguments_digest(MODEL, ["--ctx-size=8192"], [GPU]),
        arguments_digest(MODEL, ["--ctx-size=4096"], [GPU, GPU]),
        arguments_digest(MODEL, ["--ctx-size=4096"], []),
        arguments_digest(MODEL, ["--ctx-size=4096"], [replace(GPU, memory_total=40)]),
        arguments_digest(replace(MODEL, weight_bytes=2000), ["--ctx-size=4096"], [GPU]),
        arguments_digest(MODEL, ["--ctx-size=4096"], [GPU], ["OMP_NUM_THREADS=2"]),
    ]

    assert len({first, *others}) == 7
    # Another machine with the same kind of GPU, and another path, are the same.
    same = arguments_digest(replace(MODEL, path="/n"), ["--ctx-size=4096"], [replace(GPU, uuid="b", index=3)])
    assert same == first
