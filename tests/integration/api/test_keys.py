from __future__ import annotations

import hashlib
import re

import pytest

from gpustack.db import KeyRow
from support.api import Api


async def _rows(api: Api) -> list[KeyRow]:
    return await api.services.store.api_keys.principals()


async def test_the_text_is_shown_once_and_only_its_digest_is_kept(api: Api) -> None:
    answer = await api.admin.post("/v2/api-keys", json={"name": "ci"})
    key = answer.json()

    assert re.fullmatch(r"gpustack_[0-9a-f]{16}_[0-9a-f]{32}", key["value"])
    assert key["value"].split("_")[1] == key["access_key"]
    assert [row.digest for row in await _rows(api)] == [hashlib.sha256(key["value"].encode()).hexdigest()]
    assert key["value"].split("_")[2] not in (await api.admin.get(f"/v2/api-keys/{key['id']}")).text
    assert key["value"].split("_")[2] not in (await api.admin.get("/v2/api-keys")).text


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
async def test_a_key_works_at_once_and_not_after_its_deletion(api: Api, header: str) -> None:
    value = await api.key()
    headers = {header: f"Bearer {value}" if header == "Authorization" else value}

    assert (await api.anyone.get("/v2/users/me", headers=headers)).status_code == 200
    assert (await api.anyone.get("/v1/models", headers=headers)).status_code == 200
    assert (await api.admin.delete("/v2/api-keys/1")).status_code == 204
    assert (await api.anyone.get("/v2/users/me", headers=headers)).status_code == 401
    assert (await api.anyone.get("/v1/models", headers=headers)).status_code == 401


async def test_a_key_is_over_when_its_time_is(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    value = await api.key(expires_in=60)
    headers = {"Authorization": f"Bearer {value}"}
    assert (await api.anyone.get("/v1/models", headers=headers)).status_code == 200
    import time

    later = time.time() + 61
    monkeypatch.setattr("time.time", lambda: later)

    assert (await api.anyone.get("/v1/models", headers=headers)).status_code == 401
    answer = await api.anyone.get("/v2/users/me", headers=headers)
    assert answer.status_code == 401
    assert "expired" in answer.json()["message"]


async def test_two_keys_of_one_name_are_refused(api: Api) -> None:
    await api.key()

    answer = await api.admin.post("/v2/api-keys", json={"name": "a key"})

    assert answer.status_code == 409
    assert answer.json()["reason"] == "Conflict"


@pytest.mark.parametrize(
    ("maker", "wanted", "status"),
    [(60, None, 403), (60, 0, 403), (60, 3600, 403), (60, 30, 201), (None, None, 201)],
)
async def test_a_key_makes_none_that_outlives_it(
    api: Api, maker: int | None, wanted: int | None, status: int
) -> None:
    headers = {"Authorization": f"Bearer {await api.key(expires_in=maker)}"}

    answer = await api.anyone.post(
        "/v2/api-keys", json={"name": "other", "expires_in": wanted}, headers=headers
    )

    assert answer.status_code == status, answer.text
    if status == 403:
        assert "outlives" in answer.json()["message"]
