"""What pip and uv print, as steps and as reasons."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpustack.worker.artifacts.collect import Unused, due
from gpustack.worker.artifacts.pipx import explain_failure
from gpustack.worker.artifacts.proof import names
from gpustack.worker.artifacts.receipts import Held, Receipt
from gpustack.worker.artifacts.steps import step_of


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("  Downloading http://x/y/torch-2.13.0-cp311-linux_x86_64.whl (850.3 MB)", "downloading torch-2.13.0-cp311-linux_x86_64.whl (850.3 MB)"),
        ("Downloading torch (800.1MiB)", "downloading torch (800.1MiB)"),
        ("Collecting numpy>=2 (from vllm)", "looking for numpy>=2"),
        ("DEBUG Selecting: torch==2.13.0 [compatible] (torch-2.13.0.whl)", "looking for torch==2.13.0"),
        ("Installing collected packages: a, b, c", "unpacking 3 packages"),
        ("Prepared 12 packages in 3ms", "unpacking 12 packages"),
        ("Building wheel for x (pyproject.toml): started", "building x"),
        ("DEBUG Searching for user configuration", ""),
    ],
)  # fmt: skip
def test_steps(line: str, step: str) -> None:
    assert step_of(line) == step


@pytest.mark.parametrize(
    ("output", "said", "again"),
    [
        ("error: failed to copy: No space left on device (os error 28)", "the disk is full", True),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "its hash is another", False),
        ("  × Failed to download `dep==1.0`\n  ╰─▶ Hash mismatch for `dep==1.0`", "its hash is another", False),
        ("ERROR: Cannot install a and b because these package versions have conflicting dependencies.", "contradict", False),
        ("Because there is no version of x==9 and you require x==9, we can conclude that your requirements are unsatisfiable.", "has no x==9 ", False),
        ("Because x was not found in the provided package locations, your requirements are unsatisfiable", "does not have x", False),
        ("ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)", "or has no x==1", True),
        ("requirement x==1 (from y==2.0) (from versions: none)\nERROR: No matching", "or has no x==1", True),
        ("PermissionError: [Errno 13] Permission denied: '/srv/pipx/venvs'", "permission denied: /srv/pipx/venvs", True),
    ],
)  # fmt: skip
def test_reasons(output: str, said: str, again: bool) -> None:
    why, may = explain_failure(output)
    assert said in why
    assert may is again


def held(name: str, days: float, *extras: str) -> Held:
    receipt = Receipt(
        backend="b", version=name, wheel="", target="/x", size=1, changed=1, verified="", extras=list(extras)
    )
    used = datetime(2026, 6, 1, tzinfo=UTC) - timedelta(days=days)
    return Held(link=Path(f"/bin/{name}"), receipt=receipt, last_used=used)


def test_what_is_due() -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    old, young, wanted, other = held("1", 31), held("2", 29), held("3", 99), held("3", 99, "a==1")
    unused = Unused(seconds=30 * 86400, wanted={("b", "3", ())})

    assert due([old, young, wanted, other], unused, now) == [old, other]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("acme 1.2", True),
        ("acme v1.2+cpu (built for x86-64)", True),
        ("acme/1.2.\n", True),
        ("version: 7 (1.2)", True),
        ("11.2.3", False),
        ("acme 1.2.3", False),
        ("acme 1.21", False),
        ("acme 0.1.2", False),
        ("acme 1.2rc1", False),
        ("acme 1.2.post1", False),
        ("acme 142", False),
    ],
)
def test_a_version_is_named_as_a_whole(said: str, named: bool) -> None:
    assert names(said, "1.2") is named
