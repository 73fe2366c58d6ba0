"""Which versions of a server and a worker work together."""

import pytest

from gpustack.kit.versions import fit, misfit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.2.3", "1.2.3"),
        ("1.2.3", "1.3.0"),
        ("1.2.0", "1.2.99"),
        ("0.9.1", "0.10.0"),
        ("1.2", "v1.3.0rc1"),
        ("1.2.0.dev4+g1f3a", "1.1.7"),
        (" 1.2.0\n", "1.2.0"),
        ("1.2rc1", "1.1"),
    ],
)
def test_one_minor_version_apart_works_either_way(one: str, other: str) -> None:
    assert fit(one, other)
    assert fit(other, one)
    assert misfit(one, other) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.2.3", "1.4.0"),
        ("0.9.0", "1.0.0"),
        ("1.9", "2.9"),
        ("0.1.0", "0.10.0"),
        ("1.1.9", "1.3.0rc1"),
        ("V1.2", "v1.20"),
    ],
)
def test_two_minor_versions_or_another_major_do_not(one: str, other: str) -> None:
    assert not fit(one, other)
    assert not fit(other, one)


@pytest.mark.parametrize(
    "odd", ["", "1", "main", "dev", "g1f3a", "1.x", "-1.2", "1..2", "٣.٤", "1" * 40 + ".2"]
)
def test_a_text_without_two_numbers_is_a_build_of_somebodys_own(odd: str) -> None:
    assert fit(odd, "1.2.3")
    assert fit("1.2.3", odd)


def test_the_line_names_both_and_what_to_do() -> None:
    line = misfit("1.2.3", "1.4.0")

    assert "server has GPUStack 1.2.3 and the worker 1.4.0" in line
    assert "install" in line
    assert "\n" not in line
