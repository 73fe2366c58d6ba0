"""Nearness is told as names that near devices share, and as groups that are linked all with all."""

from gpustack_gpu_nvidia.topology import LEVELS, cliques, node_of, paths
from hypothesis import given
from hypothesis import strategies as st

#: Levels by how many of five numbers the places of two devices share from the left.
MEET = (50, 40, 30, 20, 10, 0)

places = st.lists(st.tuples(*[st.integers(0, 2)] * 5), max_size=8)


def shared(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    count = 0
    for a, b in zip(one, other, strict=True):
        if a != b:
            break
        count += 1
    return count


@given(places)
def test_devices_share_as_many_names_as_the_levels_at_which_they_meet(where: list[tuple[int, ...]]) -> None:
    found = paths(len(where), lambda a, b: MEET[shared(where[a], where[b])])

    assert len(found) == len(where)
    for a, one in enumerate(where):
        assert len(found[a]) == len(LEVELS)
        for b, other in enumerate(where):
            if a != b:
                assert shared(found[a], found[b]) == shared(one, other)


@given(st.integers(0, 8), st.data())
def test_levels_that_are_those_of_no_tree_still_give_names_that_nest(count: int, data: st.DataObject) -> None:
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    levels = {pair: data.draw(st.sampled_from(MEET)) for pair in pairs}
    found = paths(count, lambda a, b: levels[a, b])

    for (a, b), level in levels.items():
        same = [x == y for x, y in zip(found[a], found[b], strict=True)]
        assert same == sorted(same, reverse=True)  # once apart, always apart
        assert sum(same) >= sum(level <= limit for limit, _ in LEVELS)


@given(st.integers(0, 9), st.data())
def test_groups_are_linked_all_with_all(count: int, data: st.DataObject) -> None:
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    linked = {pair for pair in pairs if data.draw(st.booleans())}
    groups = cliques(count, lambda a, b: (a, b) in linked)

    members = [each for group in groups for each in group]
    assert len(members) == len(set(members))
    for group in groups:
        assert len(group) > 1
        assert {(a, b) for a in group for b in group if a < b} <= linked
    alone = [each for each in range(count) if each not in members]
    assert not {(a, b) for a in alone for b in alone if a < b} & linked


def test_a_switch_links_all_and_a_hybrid_cube_four_and_four() -> None:
    cube = {(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 5), (2, 3), (2, 6), (3, 7)}
    cube |= {(4, 5), (4, 6), (4, 7), (5, 6), (5, 7), (6, 7)}

    assert cliques(8, lambda a, b: True) == (tuple(range(8)),)
    assert cliques(8, lambda a, b: (a, b) in cube) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert cliques(8, lambda a, b: False) == ()


@given(st.integers(0, 1023))
def test_the_one_node_of_a_mask(node: int) -> None:
    mask = [0] * 16
    mask[node // 64] = 1 << node % 64

    assert node_of(mask) == node
    mask[(node + 1) % 1024 // 64] |= 1 << (node + 1) % 64
    assert node_of(mask) is None


def test_no_mask_no_node() -> None:
    assert node_of([]) is None
    assert node_of([0, 0]) is None
