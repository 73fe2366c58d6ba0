"""A worker is who has its key: whatever its host is called, wherever it is, and whatever answers were lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gpustack.kit.signing import new_key, public_key, sign
from gpustack.schemas import WorkerProof, WorkerRegistration
from support.api import DOOR_TOKEN, Api


class Machine:
    """A disk with a key on it, and where it is."""

    def __init__(self, api: Api, **fields: Any) -> None:
        self.api = api
        self.key = new_key()
        self.fields = {
            "name": "box",
            "hostname": "box.lan",
            "ip": "127.0.0.1",
            "door_token": DOOR_TOKEN,
            "worker_uuid": f"uuid-{self.key[:8]}",
            "home": "home",
            "boot": "boot",
            "start": "first",
            "version": "1",
            **fields,
        }
        self.credential = (api.data_dir / "token").read_text()
        self.session = 0

    def copied(self, **fields: Any) -> Machine:
        """Return a machine with a copy of the disk."""
        copy = Machine(self.api, **{**self.fields, **fields})
        copy.key, copy.credential = self.key, self.credential
        return copy

    async def register(self, *, signed_by: str = "", **fields: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.credential}"}
        asked = await self.api.anyone.post("/v2/worker-challenges", headers=headers)
        assert asked.status_code == 201, asked.text
        wanted = WorkerRegistration.model_validate({**self.fields, **fields})
        challenge = asked.json()["challenge"]
        proof = WorkerProof(
            public_key=public_key(self.key),
            challenge=challenge,
            signature=sign(signed_by or self.key, wanted.signed(challenge)),
        )
        body = {**wanted.model_dump(mode="json"), "proof": proof.model_dump()}
        return await self.api.anyone.post("/v2/workers", json=body, headers=headers)

    async def join(self, **fields: Any) -> int:
        """Register, keep the answer, and return the worker's number."""
        answer = await self.register(**fields)
        assert answer.status_code == 201, answer.text
        said = answer.json()
        self.credential, self.session = said["token"], said["session"]
        return int(said["id"])

    async def beat(self) -> int:
        headers = {"Authorization": f"Bearer {self.credential}", "X-GPUStack-Session": str(self.session)}
        return int((await self.api.anyone.post("/v2/worker-heartbeat", json={}, headers=headers)).status_code)


async def count(api: Api) -> int:
    return int((await api.admin.get("/v2/workers")).json()["pagination"]["total"])


async def test_a_lost_answer_makes_no_twin(api: Api) -> None:
    machine = Machine(api)
    assert (await machine.register()).status_code == 201

    await machine.join()

    assert machine.session == 1
    assert await count(api) == 1


async def test_another_name_address_and_uuid_are_the_same_worker(api: Api) -> None:
    machine = Machine(api)
    first = await machine.join()

    again = await machine.join(
        start="second", hostname="renamed", ip="127.0.0.2", name="renamed", worker_uuid="another-uuid"
    )

    assert again == first
    assert machine.session == 2
    [worker] = (await api.admin.get("/v2/workers")).json()["items"]
    assert (worker["hostname"], worker["ip"], worker["name"], worker["session"]) == (
        "renamed",
        "127.0.0.2",
        "renamed",
        2,
    )


async def test_two_with_one_name_are_two(api: Api) -> None:
    one, other = Machine(api), Machine(api, home="elsewhere")

    assert await one.join() != await other.join()

    names = [each["name"] for each in (await api.admin.get("/v2/workers")).json()["items"]]
    assert sorted(names) == ["box", "box-1"]
    assert [await one.beat(), await other.beat()] == [204, 204]


async def test_who_has_another_key_is_not_it(api: Api) -> None:
    machine = Machine(api)
    await machine.join()
    stranger = Machine(api, worker_uuid=machine.fields["worker_uuid"])

    refused = await stranger.register()
    forged = await machine.register(signed_by=stranger.key)

    assert refused.status_code == 409
    assert forged.status_code == 400
    assert "not signed by the key" in forged.json()["message"]
    assert await machine.beat() == 204


async def test_what_a_start_before_sends_does_not_count(api: Api) -> None:
    machine = Machine(api)
    await machine.join()
    earlier = machine.copied()
    earlier.session = machine.session
    await machine.join(start="second")

    assert await machine.beat() == 204
    assert await earlier.beat() == 404
    headers = {"Authorization": f"Bearer {earlier.credential}", "X-GPUStack-Session": "1"}
    answer = await api.anyone.get("/v2/model-instances", headers=headers)
    assert answer.status_code == 401
    assert "started again, as number 2" in answer.json()["message"]


@pytest.mark.parametrize("change", [{"boot": "another boot"}, {"home": "elsewhere"}])
async def test_a_cloned_disk_is_refused_until_it_has_a_key_of_its_own(
    api: Api, change: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(api)
    first = await machine.join()
    clone = machine.copied(start="clone", hostname="clone.lan", **change)

    refused = await clone.register()

    assert refused.status_code == 409
    assert "copied?" in refused.json()["message"]
    assert "clone.lan" in caplog.text
    said = (await api.admin.get("/v2/fleet")).json()
    assert any("clone.lan" in line for line in said["notices"])
    assert await machine.beat() == 204
    clone.key, clone.credential = new_key(), (api.data_dir / "token").read_text()
    assert await clone.join(worker_uuid="uuid-of-the-clone") != first
    assert [await machine.beat(), await clone.beat()] == [204, 204]


async def test_a_clone_that_nothing_tells_is_out_once_the_other_speaks(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(api)
    first = await machine.join()
    clone = machine.copied(start="clone")
    assert await clone.join() == first

    assert await machine.beat() == 404, "it is to register again"
    assert await machine.join() == first

    assert machine.session == 3
    assert await clone.beat() == 404
    assert (await clone.register()).status_code == 409
    assert await machine.beat() == 204
    assert "two live starts" in caplog.text


async def test_a_machine_that_was_started_again_is_let_in_once_its_last_sign_of_life_is_old(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(api)
    first = await machine.join()
    assert (await machine.copied(start="second", boot="second").register()).status_code == 409
    monkeypatch.setattr("gpustack.db.repositories.workers._ALIVE", timedelta(0))

    assert await machine.join(start="second", boot="second") == first
    assert await machine.join(start="third", home="moved") == first


async def test_a_challenge_of_another_server_is_to_be_fetched_anew(api: Api) -> None:
    machine = Machine(api)
    api.services.authenticator.challenges._clock = lambda: 0.0
    headers = {"Authorization": f"Bearer {machine.credential}"}
    old = (await api.anyone.post("/v2/worker-challenges", headers=headers)).json()["challenge"]
    del api.services.authenticator.challenges._clock
    import time

    api.services.authenticator.challenges._clock = time.time
    wanted = WorkerRegistration.model_validate(machine.fields)
    proof = {
        "public_key": public_key(machine.key),
        "challenge": old,
        "signature": sign(machine.key, wanted.signed(old)),
    }
    body = {**wanted.model_dump(mode="json"), "proof": proof}

    answer = await api.anyone.post("/v2/workers", json=body, headers=headers)

    assert answer.status_code == 503
    assert "ask for another" in answer.json()["message"]


async def test_nobody_gets_a_challenge_without_a_token(api: Api) -> None:
    assert (await api.anyone.post("/v2/worker-challenges")).status_code == 401
