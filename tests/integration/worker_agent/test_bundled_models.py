"""A worker serves a model that a plugin carries, wherever the plugin has it now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.bundled import a_bundled_model
from support.gguf_bytes import a_gguf


async def test_it_is_reported_and_served_from_where_the_plugin_has_it(
    fleet: Any, server: Any, until: Any, tmp_path: Path
) -> None:
    before, now = a_gguf(tmp_path / "before.gguf"), a_gguf(tmp_path / "now.gguf")
    before.unlink()
    fleet.catalogue.bundled_models["tiny"] = a_bundled_model(now)
    model = {**fleet.a_model(), "source": "bundled", "local_path": "", "bundled_name": "tiny"}

    # The path is that of an earlier version of the plugin.
    server.want(7, model, resolved_path=str(before))
    await fleet.start()

    await until(lambda: server.last(7)["state"] == "running")
    assert server.last(7)["resolved_path"] == str(now)
    assert server.registrations[0]["catalogue"]["bundled_models"] == ["tiny"]


async def test_without_the_plugin_the_instance_says_so(fleet: Any, server: Any, until: Any) -> None:
    model = {**fleet.a_model(), "source": "bundled", "local_path": "", "bundled_name": "tiny"}
    server.want(7, model)
    await fleet.start()

    await until(lambda: server.last(7)["state"] == "error")
    assert "no installed plugin brings a model 'tiny'" in server.last(7)["state_message"]
