"""No plugin of ours goes without its suite."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gpustack.extensions import load_catalogue
from gpustack.extensions.kinds import KINDS
from gpustack.testing import SUITES, ExtensionSuite

OURS = ("gpustack_", "gpustack.")


def held() -> set[type]:
    """Return the classes that the modules beside this one test."""
    found: set[type] = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path == Path(__file__):
            continue
        spec = importlib.util.spec_from_file_location(f"contract_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= {
            each.extension
            for name, each in vars(module).items()
            if name.startswith("Test") and isinstance(each, type) and issubclass(each, ExtensionSuite)
        }
    return found


@pytest.mark.parametrize("kind", [each.field for each in KINDS])
def test_every_extension_of_ours_is_held_by_its_suite(kind: str) -> None:
    catalogue, known = load_catalogue(blocked=()), held()

    ours = [each.cls for each in getattr(catalogue, kind).values() if each.cls.__module__.startswith(OURS)]

    assert [each for each in ours if each not in known] == []


def test_every_kind_has_a_suite() -> None:
    assert set(SUITES) == {each.field for each in KINDS}
