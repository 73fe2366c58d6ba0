"""The update check against a real server on loopback: what it takes, what it refuses, and when it asks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import platform
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpustack.server.updates import UpdateCheck, UpdateStatus
from support.fake_api import Asked, FakeApi, Reply, fake_api

PAGE = "https://example.org/notes"
_AUTHORITIES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture
def site() -> Iterator[FakeApi]:
    """The server that has the version document at ``/latest``."""
    with fake_api() as served:
        yield served


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(UpdateCheck, "FIRST", 0.0)
    caplog.set_level(logging.DEBUG, logger="gpustack.server.updates")


def a_check(site: FakeApi, version: str = "0.1.0", **options: Any) -> UpdateCheck:
    return UpdateCheck(site.url + "/latest", version, **options)


def answers(site: FakeApi, latest: Any, **fields: Any) -> None:
    site.on("GET", "/latest", Reply(body={"latest_version": latest, **fields}))


@contextlib.asynccontextmanager
async def running(check: UpdateCheck) -> AsyncIterator[asyncio.Task[Any]]:
    task = asyncio.create_task(check.run())
    try:
        yield task
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def heard(check: UpdateCheck) -> UpdateStatus:
    async with running(check):
        await until(lambda: check.latest.checked_at)
    return check.latest


async def failure(check: UpdateCheck, caplog: pytest.LogCaptureFixture) -> str:
    """Return the one line that a check which fails leaves in the log."""
    async with running(check):
        await until(lambda: caplog.records)
        assert (check.latest.latest_version, check.latest.checked_at) == (None, None)
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    line = caplog.text.rstrip("\n")
    assert line.isprintable()
    return line


def infos(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]


async def test_a_newer_version_is_shown_and_said_once(
    site: FakeApi, caplog: pytest.LogCaptureFixture
) -> None:
    answers(site, "0.2.0", url=PAGE)
    check = a_check(site, interval=0.01)
    before = datetime.now(UTC)
    async with running(check):
        await until(lambda: len(site.asked) >= 3)
    found = check.latest
    assert (found.current_version, found.latest_version, found.url) == ("0.1.0", "0.2.0", PAGE)
    assert found.update_available
    assert found.enabled
    assert found.checked_at is not None
    assert before <= found.checked_at <= datetime.now(UTC)
    assert infos(caplog) == [f"GPUStack 0.2.0 is available (this is 0.1.0): {PAGE}"]


@pytest.mark.parametrize(
    ("ours", "latest", "offered"),
    [
        ("0.1.0", "0.1.0", False),
        ("0.1.0", "v0.1", False),
        ("0.2.0", "0.1.9", False),
        ("0.9.0", "0.10.0", True),
        ("0.1.0", "0.1.0.post1", True),
        ("0.1.0", "0.2.0rc1", False),
        ("0.1.0", "0.2.0.dev3", False),
        ("0.2.0rc1", "0.2.0rc2", True),
        ("0.2.0rc1", "0.2.0", True),
        ("0.2.0.dev1+g1f3a", "0.2.0", True),
        ("0.1.0+mine", "0.1.0", False),
        ("our build", "9.9.9", False),
    ],
)
async def test_newer_is_meant_by_the_order_of_versions(
    site: FakeApi, caplog: pytest.LogCaptureFixture, ours: str, latest: str, offered: bool
) -> None:
    answers(site, latest)
    found = await heard(a_check(site, ours))
    assert found.update_available is offered
    assert found.latest_version == latest.removeprefix("v")
    assert len(infos(caplog)) == offered


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "0.2.0",
        {},
        {"latest_version": None},
        {"latest_version": 2},
        {"latest_version": ["0.2.0"]},
        {"latest_version": ""},
        {"latest_version": "soon"},
        {"latest_version": "1" * 65},
        {"latest_version": "0.2.0\x1b[2J"},
        {"latest_version": "\ud800"},
        {"latest_version": "0.2.0", "url": None},
        {"latest_version": "0.2.0", "url": {"href": PAGE}},
        {"latest_version": "0.2.0", "url": "notes.html"},
        {"latest_version": "0.2.0", "url": "https://"},
        {"latest_version": "0.2.0", "url": "http://["},
        {"latest_version": "0.2.0", "url": "javascript:alert(1)"},
        {"latest_version": "0.2.0", "url": "file:///etc/passwd"},
        {"latest_version": "0.2.0", "url": f"{PAGE}\x1b]0;mine\x07"},
        {"latest_version": "0.2.0", "url": f"{PAGE}\u202e"},
        {"latest_version": "0.2.0", "url": f"{PAGE}/a b"},
        {"latest_version": "0.2.0", "url": PAGE + "x" * 2048},
    ],
)
async def test_a_document_that_is_none_is_a_failure(
    site: FakeApi, caplog: pytest.LogCaptureFixture, document: Any
) -> None:
    site.on("GET", "/latest", Reply(body=document))
    assert "failed" in await failure(a_check(site), caplog)


@pytest.mark.parametrize(
    "content",
    [
        b"<!doctype html><html>Sign in to the hotel's network</html>",
        b"\xff\xfe\xfd",
        b"\x1b[31m",
        b"[" * 60_000,
        b'{"latest_version": "0.2.0"',
        b'{"latest_version": ' + b"9" * 5000 + b"}",
    ],
    ids=["html", "no text", "escape code", "deep", "half", "long number"],
)
async def test_what_is_no_json_is_a_failure(
    site: FakeApi, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    site.on("GET", "/latest", Reply(pieces=[content]))
    await failure(a_check(site), caplog)


async def test_a_huge_body_is_not_read_to_its_end(site: FakeApi, caplog: pytest.LogCaptureFixture) -> None:
    site.on("GET", "/latest", Reply(pieces=itertools.repeat(b" " * 8192)))
    assert "more than 64 KiB" in await failure(a_check(site), caplog)


@pytest.mark.parametrize("status", [204, 304, 404, 500])
async def test_any_other_status_is_a_failure(
    site: FakeApi, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    site.on("GET", "/latest", Reply(status))
    assert str(status) in await failure(a_check(site), caplog)


async def test_a_redirect_is_followed(site: FakeApi) -> None:
    answers(site, "0.2.0")
    site.on("GET", "/moved", Reply(302, headers={"Location": "/latest"}))
    found = await heard(UpdateCheck(site.url + "/moved", "0.1.0"))
    assert found.latest_version == "0.2.0"


@pytest.mark.parametrize("target", ["/latest", "ftp://127.0.0.1/latest", "http://[", "file:///etc/passwd"])
async def test_a_redirect_that_leads_nowhere_is_a_failure(
    site: FakeApi, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    site.on("GET", "/latest", Reply(302, headers={"Location": target}))
    await failure(a_check(site), caplog)


async def test_all_of_it_has_a_time_limit(site: FakeApi, caplog: pytest.LogCaptureFixture) -> None:
    def drip() -> Iterator[bytes]:
        while not site.ending.wait(0.02):
            yield b" "

    site.on("GET", "/latest", Reply(pieces=drip()))
    began = time.monotonic()
    assert "TimeoutError" in await failure(a_check(site, timeout=0.1), caplog)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("url", ["http://", "http://[", "https://\x00", "nonsense"])
async def test_a_url_that_is_none_is_a_failure(caplog: pytest.LogCaptureFixture, url: str) -> None:
    await failure(UpdateCheck(url, "0.1.0"), caplog)


async def test_no_internet_is_a_line_for_debugging_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        assert "ConnectError" in await failure(UpdateCheck(f"http://127.0.0.1:{port}/", "0.1.0"), caplog)


@pytest.mark.parametrize("variable", _AUTHORITIES)
async def test_authorities_that_cannot_be_read_are_a_failure(
    site: FakeApi, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in _AUTHORITIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/nowhere.pem")
    assert "FileNotFoundError" in await failure(a_check(site), caplog)


async def test_after_a_failure_it_is_asked_again_and_what_was_heard_stays(
    site: FakeApi, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UpdateCheck, "AGAIN", 0.01)
    good = Reply(body={"latest_version": "0.2.0"})
    site.on("GET", "/latest", Reply(500), good, Reply(500), Reply(500), good)
    check = a_check(site, interval=0.01)
    async with running(check):
        await until(lambda: len(site.asked) == 4)
        assert check.latest.latest_version == "0.2.0"
        await until(lambda: len(site.asked) >= 6)
    assert len(infos(caplog)) == 1


async def test_nothing_about_the_installation_is_sent(site: FakeApi) -> None:
    answers(site, "0.2.0")
    await heard(a_check(site, "0.1.0"))
    [asked] = site.asked
    assert asked.headers.keys() == {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert asked.headers["user-agent"] == f"gpustack/0.1.0 ({platform.system()}; {platform.machine()})"
    assert (asked.query, asked.body) == ({}, b"")


async def test_without_a_url_nobody_is_asked(site: FakeApi) -> None:
    check = UpdateCheck("", "0.1.0")
    async with running(check):
        await asyncio.sleep(0.02)
    assert check.latest == UpdateStatus(current_version="0.1.0", enabled=False)


async def test_another_url_is_asked_soon(site: FakeApi) -> None:
    answers(site, "0.2.0")
    site.on("GET", "/other", Reply(body={"latest_version": "0.3.0"}))
    check = a_check(site)
    async with running(check):
        await until(lambda: check.latest.latest_version == "0.2.0")
        check.use(site.url + "/other")
        assert check.latest.latest_version is None
        await until(lambda: check.latest.latest_version == "0.3.0")


async def test_turned_off_it_forgets_and_stops_until_turned_on(site: FakeApi, tmp_path: Path) -> None:
    answers(site, "0.2.0")
    kept = tmp_path / "update.json"
    check = a_check(site, interval=0.01, kept=kept)
    async with running(check):
        await until(kept.exists)
        check.use("")
        assert check.latest == UpdateStatus(current_version="0.1.0", enabled=False)
        await until(lambda: not kept.exists())
        asked = len(site.asked)
        await asyncio.sleep(0.05)
        assert len(site.asked) == asked
        check.use(site.url + "/latest")
        await until(kept.exists)
    assert check.latest.update_available


async def test_an_answer_that_comes_after_it_was_turned_off_is_dropped(site: FakeApi, tmp_path: Path) -> None:
    check = a_check(site, kept=tmp_path / "update.json")
    loop = asyncio.get_running_loop()

    def late(_: Asked) -> Reply:
        loop.call_soon_threadsafe(check.use, "")
        time.sleep(0.02)
        return Reply(body={"latest_version": "0.2.0"})

    site.on("GET", "/latest", late)
    async with running(check):
        await until(lambda: site.asked)
        await asyncio.sleep(0.1)
    assert check.latest.latest_version is None
    assert list(tmp_path.iterdir()) == []


def keep(path: Path, asked: str, *, age: float = 60.0, **fields: Any) -> None:
    """Write what an earlier run of 0.1.0 heard ``age`` seconds ago."""
    document = {
        "source": asked, "current_version": "0.1.0", "latest_version": "0.2.0", "update_available": True,
        "url": PAGE, "checked_at": (datetime.now(UTC) - timedelta(seconds=age)).isoformat(), "enabled": True,
    }  # fmt: skip
    path.write_text(json.dumps(document | fields))


async def test_a_restart_does_not_ask_again(site: FakeApi, tmp_path: Path) -> None:
    answers(site, "0.2.0", url=PAGE)
    check = a_check(site, kept=tmp_path / "update.json")
    async with running(check):
        await until((tmp_path / "update.json").exists)
    first = check.latest
    assert (tmp_path / "update.json").stat().st_mode & 0o777 == 0o600
    second = a_check(site, kept=tmp_path / "update.json")
    assert await heard(second) == first
    assert len(site.asked) == 1


async def test_what_an_older_version_heard_is_judged_anew(
    site: FakeApi, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    kept = tmp_path / "update.json"
    keep(kept, site.url + "/latest")
    check = a_check(site, "0.2.0", kept=kept)
    async with running(check):
        await until(lambda: json.loads(kept.read_text())["current_version"] == "0.2.0")
    assert json.loads(kept.read_text())["update_available"] is False
    assert (check.latest.latest_version, check.latest.update_available) == ("0.2.0", False)
    assert (site.asked, infos(caplog)) == ([], [])


@pytest.mark.parametrize("age", [90_000.0, -90_000.0], ids=["old", "of the future"])
async def test_what_is_not_of_the_last_day_is_shown_until_it_is_asked_anew(
    site: FakeApi, tmp_path: Path, age: float
) -> None:
    kept = tmp_path / "update.json"
    keep(kept, site.url + "/latest", age=age)
    answers(site, "0.3.0")
    check = a_check(site, kept=kept)
    async with running(check):
        await until(lambda: check.latest.latest_version == "0.2.0")
        await until(lambda: check.latest.latest_version == "0.3.0")
        await until(lambda: json.loads(kept.read_text())["latest_version"] == "0.3.0")


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "http://elsewhere"},
        {"checked_at": "yesterday"},
        {"checked_at": 3},
        {"latest_version": "\x1b[2J"},
        {"url": "x"},
    ],
    ids=repr,
)
async def test_a_file_that_is_of_no_use_is_replaced(
    site: FakeApi, tmp_path: Path, fields: dict[str, Any]
) -> None:
    kept = tmp_path / "update.json"
    keep(kept, site.url + "/latest", **{"latest_version": "0.4.0", **fields})
    answers(site, "0.3.0")
    assert (await heard(a_check(site, kept=kept))).latest_version == "0.3.0"


async def test_off_at_the_start_removes_what_was_heard(tmp_path: Path) -> None:
    keep(tmp_path / "update.json", "http://127.0.0.1/")
    async with running(UpdateCheck("", "0.1.0", kept=tmp_path / "update.json")):
        await until(lambda: not (tmp_path / "update.json").exists())


async def test_a_disk_that_takes_nothing_is_a_warning(
    site: FakeApi, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    answers(site, "0.1.0")
    check = a_check(site, kept=tmp_path / "gone" / "update.json")
    async with running(check):
        await until(lambda: caplog.records)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "is not kept" in record.getMessage()
    assert check.latest.latest_version == "0.1.0"
