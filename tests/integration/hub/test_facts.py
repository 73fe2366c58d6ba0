"""What a repository says before anything is downloaded, and what the hub answers instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.kit.errors import (
    Forbidden,
    GPUStackError,
    InvalidInput,
    NotFound,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from gpustack.testing.hub import FakeHub
from gpustack.worker.artifacts.hub import DownloadError
from gpustack.worker.artifacts.hub.cache import HubSource
from gpustack.worker.facts import read_facts

from .conftest import CHAT, Place

TOKEN = "hf_a-secret"


@pytest.mark.parametrize("repo", ["org/tiny-GGUF", "org/tiny"])
async def test_the_headers_are_read_without_the_weights(
    place: Place, hub: FakeHub, repo: str, tiny_gguf: Path, tiny_hf: Path
) -> None:
    found = await place.files().facts(HubSource(repo=repo))
    local = read_facts(tiny_gguf if "GGUF" in repo else tiny_hf)
    same = (
        "format",
        "weight_bytes",
        "architecture",
        "layers",
        "context_length",
        "vocabulary",
        "categories",
        "kv_heads",
    )
    assert {name: getattr(found.facts, name) for name in same} == {
        name: getattr(local, name) for name in same
    }
    assert found.commit == hub.repositories[repo].names["main"]
    assert found.path is None
    assert hub.sent <= 1 << 20
    assert not place.cache.exists()


async def test_a_long_vocabulary_and_many_shards_are_read_in_spans(
    place: Place, hub: FakeHub, tiny_hf: Path
) -> None:
    files = {each.name: each for each in tiny_hf.iterdir()}
    shard = files.pop("model.safetensors")
    names = [f"model-{n:05}-of-00040.safetensors" for n in range(1, 41)]
    hub.add("org/shards", {**files, **dict.fromkeys(names, shard)})
    found = await place.files().facts(HubSource(repo="org/shards"))
    assert found.facts.weight_bytes == 40 * shard.stat().st_size
    assert hub.sent <= 40 * (256 << 10)


async def test_a_damaged_header_is_told_by_the_files_name_on_the_hub(
    place: Place, hub: FakeHub, tiny_gguf: Path
) -> None:
    hub.add("org/short", {"short.gguf": tiny_gguf.read_bytes()[:-1000]})
    with pytest.raises(InvalidInput, match=r"^org/short/short.gguf is truncated"):
        await place.files().facts(HubSource(repo="org/short"))


@pytest.mark.parametrize(
    ("source", "error", "line"),
    [
        (
            HubSource(repo="org/nothing"),
            NotFound,
            "has no repository org/nothing, or it is private; check the name, or give",
        ),
        (
            HubSource(repo="org/tiny", revision="v9"),
            NotFound,
            "org/tiny has no branch, tag or commit 'v9' at http",
        ),
        (
            HubSource(repo="org/gated"),
            Forbidden,
            "org/gated is gated: accept its licence at http://.*/org/gated, and give a",
        ),
        (HubSource(repo="org/private"), NotFound, "or it is private; check the name, or give a token with"),
    ],
)
async def test_without_a_token(
    place: Place, hub: FakeHub, tiny_gguf: Path, source: HubSource, error: type[GPUStackError], line: str
) -> None:
    for repo in ("org/gated", "org/private"):
        hub.add(repo, {"m.gguf": tiny_gguf})
    hub.faults.gated, hub.faults.private = {"org/gated"}, {"org/private"}
    with pytest.raises(error, match=line) as caught:
        await place.files().facts(source)
    assert "\n" not in caught.value.message


async def test_with_a_token(place: Place, hub: FakeHub, tiny_gguf: Path) -> None:
    hub.add("org/gated", {"m.gguf": tiny_gguf})
    gated, hub.faults.gated, hub.faults.tokens = HubSource(repo="org/gated"), {"org/gated"}, {TOKEN}
    with pytest.raises(
        Forbidden, match="is gated, and the token's account has no access; accept the licence"
    ):
        await place.files(token=TOKEN).facts(gated)
    with pytest.raises(
        Unauthenticated, match="does not accept the token; give a valid one with --huggingface-token"
    ):
        await place.files(token="hf_other").facts(gated)
    hub.faults.trusted = {TOKEN}
    assert (await place.files(token=TOKEN).facts(gated)).facts.architecture == "llama"
    assert not [each for each in hub.requests(at="content") if "Authorization" in each.headers]


async def test_what_may_pass_is_told_apart(place: Place, hub: FakeHub) -> None:
    hub.faults.throttled, hub.faults.retry_after = 1, 7
    with pytest.raises(Throttled, match="limits the rate of requests; a token raises the limit") as caught:
        await place.files().facts(CHAT)
    assert caught.value.retry_after == 7
    hub.faults.errors = 1
    with pytest.raises(Unavailable, match="answers 500 for org/tiny-GGUF"):
        await place.files().facts(CHAT)
    with pytest.raises(
        Unavailable, match="cannot be reached; check the network, the proxy variables, or HF_ENDPOINT"
    ):
        await place.files(endpoint="http://127.0.0.1:9").facts(CHAT)
    with pytest.raises(InvalidInput, match=r"HF_ENDPOINT 'huggingface\.co' is not a URL"):
        await place.files(endpoint="huggingface.co").facts(CHAT)


async def test_a_commit_that_is_here_needs_no_hub(place: Place, hub: FakeHub) -> None:
    path = await place.fetch()
    commit = hub.repositories[CHAT.repo].names["main"]
    asked = len(hub.asked)
    found = await place.files(endpoint="http://127.0.0.1:9").facts(CHAT, commit)
    assert (found.path, found.commit) == (path, commit)
    unpinned = await place.files(endpoint="http://127.0.0.1:9").facts(CHAT)
    assert unpinned == found
    assert len(hub.asked) == asked
    path.unlink()
    with pytest.raises(Unavailable):
        await place.files(endpoint="http://127.0.0.1:9").facts(CHAT, commit)


async def test_offline_nobody_is_asked(place: Place, hub: FakeHub) -> None:
    with pytest.raises(
        DownloadError, match=r"^org/tiny-GGUF is not in .*, and HF_HUB_OFFLINE is set"
    ) as caught:
        await place.files(offline=True).facts(CHAT)
    assert not caught.value.again
    assert not hub.asked
    path = await place.fetch()
    commit, asked = hub.repositories[CHAT.repo].names["main"], len(hub.asked)
    for revision in ("", commit):
        found = await place.files(offline=True).facts(HubSource(repo=CHAT.repo, revision=revision), "")
        assert (found.path, found.commit) == (path, commit)
    assert await place.files(offline=True).fetch(CHAT, commit, place.seen.append) == path
    # Others put files here without our note.
    for note in place.cache.glob("models--*/.gpustack/*"):
        note.unlink()
    assert (await place.files(offline=True).facts(CHAT)).path == path
    assert await place.files(offline=True).fetch(CHAT, commit, place.seen.append) == path
    with pytest.raises(DownloadError, match=f"^org/tiny-GGUF@{'0' * 40} is not in"):
        await place.files(offline=True).fetch(CHAT, "0" * 40, place.seen.append)
    assert len(hub.asked) == asked
