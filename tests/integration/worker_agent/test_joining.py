"""How a worker gets in, the first time and after that, and what it says when it cannot."""

import asyncio
import contextlib
import json
import shutil
import socket
from typing import Any

import pytest

from gpustack.kit.errors import Refused
from gpustack.kit.signing import verified
from gpustack.schemas import WorkerRegistration

TOKEN = "join"
HTML = b"<html><body>404 page not found</body></html>"


def a_refusal(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"code": status, "reason": "any", "message": message}


async def ended(fleet: Any, **changes: Any) -> str:
    """Start a worker that may give up, and return its last line."""
    with pytest.raises(Refused) as caught:
        await fleet.start(**{"remote": True, **changes})
    assert "\n" not in caught.value.message
    return caught.value.message


def told(caplog: pytest.LogCaptureFixture) -> str:
    """Return what the person in front of the terminal was told."""
    return "\n".join(each.getMessage() for each in caplog.records if getattr(each, "tell", False))


class TestItsOwnCredential:
    async def test_the_token_is_needed_only_once(self, fleet: Any, server: Any) -> None:
        await fleet.start()
        await fleet.stop()
        await fleet.start(registration_token="", remote=True)

        assert fleet.ready.is_set()
        assert server.shown == [TOKEN, "credential-number-1"]
        kept = fleet.config.worker_dir / "credential"
        assert kept.read_text().strip() == "credential-number-1"
        assert kept.stat().st_mode & 0o777 == 0o600

    async def test_an_unknown_one_gives_way_to_the_token(self, fleet: Any, server: Any) -> None:
        await fleet.start()
        await fleet.stop()
        server.forget_workers()
        await fleet.start(remote=True)

        assert fleet.ready.is_set()
        assert server.shown == [TOKEN, "credential-number-1", TOKEN]
        assert (fleet.config.worker_dir / "credential").read_text().strip() == "credential-number-2"

    async def test_one_that_is_taken_away_without_the_token_is_said_and_tried_on(
        self, fleet: Any, server: Any, until: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        await fleet.start()
        await fleet.stop()
        await fleet.start(registration_token="", remote=True)

        server.forget_workers()

        await until(lambda: "does not know this worker any more" in told(caplog))
        assert "GPUSTACK_TOKEN" in told(caplog)
        assert not fleet.task.done()
        server.tokens = {"credential-number-1": 1}  # the server's data are restored
        beats = len(server.beats)
        await until(lambda: len(server.beats) > beats)
        assert set(server.shown[1:]) == {"credential-number-1"}

    async def test_both_it_and_the_token_may_be_refused_for_a_moment(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(remote=True)
        server.answers = [a_refusal(401, "by a proxy")] * 4
        server.beat_answer = a_refusal(401, "by a proxy")
        await until(lambda: len(server.shown) >= 5)
        server.beat_answer = (204, None)
        await until(lambda: len(server.registrations) == 2)

        assert not fleet.task.done()
        assert server.shown[1:6] == ["credential-number-1", TOKEN] * 2 + ["credential-number-1"]

    async def test_a_lost_answer_does_no_harm(self, fleet: Any, server: Any) -> None:
        server.answers = [(201, b"")]
        await fleet.start()
        await fleet.stop()
        server.answers = [(502, b"")]
        await fleet.start(registration_token="", remote=True)

        assert fleet.ready.is_set()
        assert len({each["worker_uuid"] for each in server.registrations}) == 1

    @pytest.mark.parametrize("rubbish", [b"", b"\x00\xff\x80", b"short", b"x" * 9999])
    async def test_a_spoilt_file_counts_as_none(self, fleet: Any, server: Any, rubbish: bytes) -> None:
        await fleet.start()
        await fleet.stop()
        (fleet.config.worker_dir / "credential").write_bytes(rubbish)
        await fleet.start()

        assert server.shown == [TOKEN, TOKEN]


class TestRefusals:
    async def test_no_token_at_all(self, fleet: Any, server: Any) -> None:
        line = await ended(fleet, registration_token="")

        assert server.shown == []
        for way in (
            "--token-file",
            "GPUSTACK_TOKEN",
            "token_file",
            "--config-file",
            "gpustack workers join-command",
        ):
            assert way in line

    async def test_a_wrong_token(self, fleet: Any, server: Any) -> None:
        line = await ended(fleet, registration_token="wrong")

        assert server.url in line
        assert "does not accept the token" in line
        assert "gpustack workers join-command" in line
        assert server.shown == ["wrong"]

    async def test_another_version(self, fleet: Any, server: Any) -> None:
        server.answers = [
            a_refusal(400, "the server has GPUStack 9.1 and the worker 0.1, which are too far apart")
        ]

        assert "9.1" in await ended(fleet)

    @pytest.mark.parametrize("process", ["the same", "the next"])
    @pytest.mark.slow
    async def test_a_server_that_became_another_version_ends_no_worker_that_has_served(
        self, fleet: Any, server: Any, until: Any, caplog: pytest.LogCaptureFixture, process: str
    ) -> None:
        await fleet.start(remote=True)
        server.answers = [a_refusal(400, "too far apart")] * 5
        server.beat_answer = a_refusal(400, "too far apart")
        if process == "the next":
            await fleet.stop()
            starting = asyncio.create_task(fleet.start(remote=True))

        await until(lambda: "too far apart" in told(caplog))
        assert not fleet.task.done()
        server.beat_answer = (204, None)
        await until(lambda: len(server.registrations) == 2)
        if process == "the next":
            await starting

    async def test_what_is_no_gpustack(self, fleet: Any, server: Any) -> None:
        server.answers = [(404, HTML)]

        line = await ended(fleet)

        assert server.url in line
        assert "is it a GPUStack server?" in line
        assert "--server-url" in line

    async def test_plain_text_where_https_is_spoken(self, fleet: Any, server: Any) -> None:
        server.answers = [(400, b"<html>The plain HTTP request was sent to HTTPS port</html>")]

        assert f"try https://{server.url.removeprefix('http://')}" in await ended(fleet)

    async def test_a_built_in_worker_goes_on_asking(self, fleet: Any, server: Any) -> None:
        server.answers = [a_refusal(400, "too far apart"), a_refusal(401, "who are you"), (404, HTML)]

        await fleet.start()

        assert fleet.ready.is_set()
        assert len(server.shown) == 4


class TestPatience:
    async def test_https_where_plain_text_is_spoken_says_so_and_goes_on(
        self, fleet: Any, server: Any, until: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = server.url.replace("http://", "https://")
        starting = asyncio.create_task(fleet.start(server_url=url, remote=True))
        try:
            await until(lambda: "try http:// instead of https://" in caplog.text)
            assert not starting.done()
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    async def test_an_unreachable_server_is_named_to_the_person_in_front_of_it(
        self, fleet: Any, until: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
            nobody = taken.getsockname()[1]
        starting = asyncio.create_task(fleet.start(server_url=f"http://127.0.0.1:{nobody}", remote=True))
        try:
            await until(lambda: any(getattr(record, "tell", False) for record in caplog.records))
            told = [record.getMessage() for record in caplog.records if getattr(record, "tell", False)]
            assert f"cannot reach http://127.0.0.1:{nobody}" in told[0]
            assert len(told) == 1
            assert not starting.done()
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    async def test_a_proxy_without_a_server_behind_it_stops_no_worker_that_has_joined(
        self, fleet: Any, server: Any
    ) -> None:
        await fleet.start()
        await fleet.stop()
        server.answers = [(404, HTML), (503, b""), (500, b"")]
        await fleet.start(registration_token="", remote=True)

        assert fleet.ready.is_set()


class TestCopies:
    async def test_one_whose_original_lives_becomes_another_worker(
        self, fleet: Any, server: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        await fleet.start()
        await fleet.stop()
        server.answers = [a_refusal(409, "worker w1 is alive on elsewhere")] * 3
        await fleet.start(remote=True, conflict_patience=0.3)

        first, second = server.registrations
        assert first["worker_uuid"] != second["worker_uuid"]
        assert server.shown[-1] == TOKEN
        told = [record.getMessage() for record in caplog.records if getattr(record, "tell", False)]
        assert len(told) == 2
        assert "Joining as a new worker" in told[1]

    async def test_one_whose_original_just_ended_is_the_same_worker(self, fleet: Any, server: Any) -> None:
        await fleet.start()
        await fleet.stop()
        server.answers = [a_refusal(409, "worker w1 is alive on elsewhere")]
        await fleet.start(remote=True, conflict_patience=30)

        first, second = server.registrations
        assert first["worker_uuid"] == second["worker_uuid"]

    async def test_without_the_token_it_ends_with_a_line(self, fleet: Any, server: Any) -> None:
        await fleet.start()
        await fleet.stop()
        server.answers = [a_refusal(409, "worker w1 is alive on elsewhere")] * 5

        line = await ended(fleet, registration_token="", conflict_patience=0.1)

        assert "alive on elsewhere" in line
        assert "GPUSTACK_TOKEN" in line

    async def test_a_copied_data_directory_is_another_home(
        self, fleet: Any, server: Any, tmp_path: Any
    ) -> None:
        await fleet.start(remote=True)
        await fleet.stop()
        shutil.copytree(fleet.config.data_dir, tmp_path / "copy")
        await fleet.start(remote=True, data_dir=tmp_path / "copy")
        await fleet.stop()
        await fleet.start(remote=True)

        homes = [each["home"] for each in server.registrations]
        assert homes[0] == homes[2] != homes[1]
        assert len({each["worker_uuid"] for each in server.registrations}) == 1

    async def test_a_built_in_worker_is_no_copy_of_anything(self, fleet: Any, server: Any) -> None:
        await fleet.start()

        assert [each["home"] for each in server.registrations] == [""]


class TestItsKey:
    async def test_each_start_proves_the_same_key_and_says_which_start_it_is(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        for _ in range(2):
            await fleet.start(remote=True)
            await fleet.stop()

        first, second = (WorkerRegistration.model_validate(each) for each in server.registrations)
        for registration, challenge in zip((first, second), server.challenges, strict=True):
            proof = registration.proof
            assert proof is not None
            assert proof.challenge == challenge
            assert verified(proof.public_key, registration.signed(challenge), proof.signature)
        assert first.proof is not None
        assert second.proof is not None
        assert first.proof.public_key == second.proof.public_key
        assert first.start != second.start
        assert first.boot == second.boot != ""
        assert set(server.sessions) == {"1", "2"}
        kept = fleet.config.worker_dir / "key"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert kept.read_text().strip() not in json.dumps(server.registrations)

    async def test_one_that_becomes_another_has_another_key(self, fleet: Any, server: Any) -> None:
        await fleet.start()
        await fleet.stop()
        server.answers = [a_refusal(409, "worker w1 is alive on elsewhere")] * 3
        await fleet.start(remote=True, conflict_patience=0.3)

        assert len({each["proof"]["public_key"] for each in server.registrations}) == 2
        assert len({each["start"] for each in server.registrations}) == 2

    async def test_forgotten_while_it_runs_it_is_still_the_same_start(
        self, fleet: Any, server: Any, until: Any
    ) -> None:
        await fleet.start(remote=True)
        server.beat_answer = a_refusal(404, "who are you")
        await until(lambda: len(server.challenges) >= 2)
        server.beat_answer = (204, None)
        await until(lambda: len(server.registrations) >= 2)

        assert len({each["start"] for each in server.registrations}) == 1

    async def test_a_server_older_than_keys_takes_it_without_proof(self, fleet: Any, server: Any) -> None:
        server.knows_keys = False
        await fleet.start(remote=True)

        assert fleet.ready.is_set()
        assert server.registrations[0]["proof"] is None
