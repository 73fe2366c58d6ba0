"""What is a package, and when two deployments want the same ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from gpustack.plugin import PipxPackage
from gpustack.schemas.packages import all_packages, normal_packages, packages_of_variable
from gpustack.worker.artifacts.pins import hashes_of
from gpustack.worker.artifacts.recipe import Recipe

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
VERSIONS = st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", fullmatch=True)
REQUIREMENTS = st.builds(
    lambda name, operator, version: f"{name}{operator}{version}",
    NAMES,
    st.sampled_from(["==", ">=", "<", "!="]),
    VERSIONS,
)
PACKAGE = PipxPackage(package="acme", version="1.0", command="acme")


def recipe(*extras: str) -> Recipe:
    return Recipe(backend="b", package=PACKAGE, extras=normal_packages(extras))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("a==1,b>=2", ("a==1", "b>=2")),
        (" b >= 2 ,a==1, ", ("a==1", "b>=2")),
        ("a>=1,<2,B_c~=3.0,!=3.1", ("a<2,>=1", "b-c!=3.1,~=3.0")),
        ("torch[opt]==2", ("torch[opt]==2",)),
        ("x @ https://example.org/x.whl", ("x@ https://example.org/x.whl",)),
    ],
)
def test_the_variable_of_a_model_names_packages(text: str, found: tuple[str, ...]) -> None:
    assert tuple(each.replace(" @", "@") for each in packages_of_variable(text)) == found


@pytest.mark.parametrize(
    "wrong",
    ["-r x", "--pre", "./a", "/a.whl", "a==1\n-r x", "a b", "a==", "x @ file:///x", "x @ ../x", "é" * 600],
)
def test_what_is_no_package_is_said_in_a_clause(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"is no package|names a place") as caught:
        normal_packages([wrong])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://me:hunter2@x.org/x.whl", "git+https://hunter2@x.org/x.git@v1"])
def test_an_address_with_a_password_is_not_taken_and_not_said(address: str) -> None:
    with pytest.raises(ValueError, match=r"the address of x has a user or a password in it") as caught:
        normal_packages([f"x @ {address}"])
    assert "hunter2" not in str(caught.value)
    assert normal_packages(["x @ git+https://x.org/x.git@v1"])


@given(st.lists(REQUIREMENTS, max_size=5), st.randoms())
def test_order_and_spelling_make_no_other_environment(found: list[str], chance: object) -> None:
    spelt = [each.replace("-", "_").upper() if chance.random() < 0.5 else f" {each} " for each in found]  # type: ignore[attr-defined]
    chance.shuffle(spelt)  # type: ignore[attr-defined]

    assert recipe(*spelt).name == recipe(*found).name
    assert recipe(*spelt).suffix.startswith("_1.0")
    for text in normal_packages(found):
        Requirement(text)


@given(st.sets(REQUIREMENTS, max_size=4), st.sets(REQUIREMENTS, max_size=4))
def test_other_packages_make_another_environment(one: set[str], two: set[str]) -> None:
    same = normal_packages(one) == normal_packages(two)
    assert (recipe(*one).folder == recipe(*two).folder) == same


def test_the_field_and_the_variable_are_joined() -> None:
    assert all_packages(["b==1"], {"GPUSTACK_BACKEND_DEPS": "a,b==1", "OTHER": "x"}) == ("a", "b==1")


def test_the_hashes_of_a_lock_are_found() -> None:
    lock = f"# by make lock\nFoo_Bar==1.0 \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\nx==2\n"
    assert hashes_of(lock) == {"foo-bar": {"a" * 64, "b" * 64}, "x": set()}
