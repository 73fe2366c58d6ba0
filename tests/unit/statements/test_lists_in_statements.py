"""Lists are filled up so that few different statements come of them, which mean the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpustack.db.dialect import filled


@given(st.lists(st.integers(), max_size=200))
def test_a_filled_list_has_the_same_members_and_begins_with_it(values: list[int]) -> None:
    found = filled(values)

    assert found[: len(values)] == values
    assert set(found) == set(values)


def test_lists_that_are_kept_have_seven_lengths_and_long_ones_their_own() -> None:
    lengths = {len(filled(range(size))) for size in range(1, 65)}

    assert lengths == {1, 2, 4, 8, 16, 32, 64}
    assert [len(filled(range(size))) for size in (0, 65, 300)] == [0, 65, 300]
