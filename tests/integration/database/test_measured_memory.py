"""What was measured of instances is kept by kind, whoever measures at once, and not without end."""

from __future__ import annotations

import asyncio

from gpustack.db import Store
from gpustack.plugin.memory import Learned, MemoryKey


def a_kind(arguments: str = "digest", version: str = "1") -> MemoryKey:
    return MemoryKey(architecture="llama", backend="fake", version=version, arguments=arguments)


async def test_each_kind_has_a_peak_of_its_own(store: Store) -> None:
    for version, ram in (("1", 100), ("2", 300)):
        await store.measured.learn(a_kind(version=version), Learned(ram=ram, vram=7), new_start=True)

    assert await store.measured.all() == {
        a_kind(version="1"): Learned(ram=100, vram=7, starts=1),
        a_kind(version="2"): Learned(ram=300, vram=7, starts=1),
    }


async def test_a_later_start_is_joined_with_those_before(store: Store) -> None:
    await store.measured.learn(a_kind(), Learned(ram=1000), new_start=True)
    assert await store.measured.learn(a_kind(), Learned(ram=1500), new_start=False) == Learned(
        ram=1500, starts=1
    )
    known = await store.measured.learn(a_kind(), Learned(ram=500), new_start=True)

    # A tenth of what it stayed below.
    assert known == Learned(ram=1400, starts=2)
    assert await store.measured.all() == {a_kind(): known}


async def test_those_that_tell_at_once_are_all_counted(store: Store) -> None:
    peaks = [Learned(ram=1000 + number) for number in range(8)]
    await asyncio.gather(*(store.measured.learn(a_kind(), each, new_start=True) for each in peaks))

    known = (await store.measured.all())[a_kind()]
    assert known.starts == 8
    assert 1000 < known.ram <= 1007


async def test_what_is_undone_is_not_learned(store: Store) -> None:
    try:
        async with store.transaction() as tx:
            await tx.measured.learn(a_kind(), Learned(ram=1), new_start=True)
            raise LookupError
    except LookupError:
        pass

    assert await store.measured.all() == {}


async def test_kinds_that_nobody_measured_for_long_are_forgotten(store: Store) -> None:
    for name in "abcd":
        await store.measured.learn(a_kind(name), Learned(ram=1), new_start=True)
    await store.measured.learn(a_kind("a"), Learned(ram=2), new_start=False)

    await store.measured.prune(keep=2)
    await store.measured.prune(keep=2)

    assert {each.arguments for each in await store.measured.all()} == {"a", "d"}
