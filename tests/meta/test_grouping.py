"""Tests that share what is slow to make stay together, however many processes run them."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("together")
def test_what_belongs_together_is_run_by_one_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist tells a group by the end of a test's name; some versions of pytest do not let it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("the tests are run by one process")
    assert request.node.nodeid.endswith("@together"), (
        "run with --dist loadgroup, and a pytest that pytest-xdist understands"
    )
