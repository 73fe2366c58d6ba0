"""What an engine took is measured, shown, and claimed by the next of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpustack.testing import fakes
from gpustack.testing.server import RunningServer, running_gpustack
from support.running import eventually

pytestmark = pytest.mark.xdist_group("e2e-memory")

MIB = 1 << 20


@pytest.mark.slow
def test_an_engine_that_took_more_than_estimated_claims_it_next_time(tmp_path: Path) -> None:
    with running_gpustack(env={"PYTHONPATH": str(fakes.path("fake-engine"))}) as server:
        file = fakes.a_model(tmp_path)
        first = deploy(server, file, "first")
        peak = first["memory"]["peak_ram"]
        # A Python process takes more than that.
        assert first["computed_resource_claim"]["ram"] == first["memory"]["estimated_ram"] == 4 * MIB
        assert 5 * MIB < peak < 30 * MIB
        assert "; took " in server.cli("show", "first").stdout
        server.cli("rm", "first")

        # The name is another one, the kind the same; and what is known outlives the server.
        server.cli("restart")
        second = deploy(server, file, "second")

        assert second["memory"]["estimated_ram"] == 4 * MIB
        assert peak <= second["computed_resource_claim"]["ram"] <= 1.1 * peak


def deploy(server: RunningServer, file: Path, name: str) -> dict[str, Any]:
    """Deploy a model that is estimated to take 4 MiB, and return its instance once its memory was measured."""
    server.deploy(file, name, backend="fake", backend_parameters=["--claim-ram=4MiB"])
    found: dict[str, Any] = {}

    def measured() -> bool:
        with server.client() as client:
            (item,) = client.get("/v2/model-instances").json()["items"]
        found.update(item)
        return bool(item["memory"]["peak_ram"])

    # Once in ten seconds it is looked at.
    eventually(measured, f"the memory of {name} is measured", seconds=40)
    return found
