from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gpustack.kit.live import Live
from gpustack.server.config import Tunables
from gpustack.server.updates import UpdateCheck
from support.api import Api, running_api
from support.fake_api import Reply, fake_api


async def test_a_server_that_asks_nobody_says_so(api: Api) -> None:
    assert (await api.admin.get("/v2/update")).json() == {
        "current_version": "0.0.test",
        "latest_version": None,
        "update_available": False,
        "url": "",
        "checked_at": None,
        "enabled": False,
    }


async def test_whoever_is_signed_in_sees_it(api: Api) -> None:
    limited = await api.key(name="limited", allowed_model_names=["tiny"])
    async with api.client(await api.key()) as client, api.client(limited) as other:
        statuses = [(await each.get("/v2/update")).status_code for each in (client, other, api.anyone)]
    assert statuses == [200, 403, 401]


async def test_what_is_heard_in_the_background_is_shown_and_kept(
    migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UpdateCheck, "FIRST", 0.0)
    with fake_api() as site:
        site.on("GET", "/latest", Reply(body={"latest_version": "9.0", "url": "https://example.org/9"}))
        url = site.url + "/latest"
        async with (
            running_api(migrated_url, tmp_path, tunables=Live(Tunables(update_check_url=url))) as api,
            asyncio.timeout(5),
        ):
            while (found := (await api.admin.get("/v2/update")).json())["checked_at"] is None:
                await asyncio.sleep(0.01)
            while not (tmp_path / "run" / "update.json").exists():
                await asyncio.sleep(0.01)
    # Its own version, 0.0.test, has no place in the order of versions.
    assert (found["latest_version"], found["update_available"]) == ("9.0", False)
    assert (found["url"], found["enabled"]) == ("https://example.org/9", True)
