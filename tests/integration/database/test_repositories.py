"""What is stored comes back, and what cannot be stored is said in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from gpustack.db import Door, Store
from gpustack.kit.errors import Conflict, InvalidInput, NotFound
from gpustack.schemas import (
    ApiKeyCreate,
    Claim,
    FactsDocument,
    Heartbeat,
    InstanceState,
    ModelFileDownload,
    ModelFileReport,
    ModelFileState,
    ModelUpdate,
    Source,
    WorkerState,
    source_key,
)
from support.records import a_model_wanted, a_registration, a_source, a_status

LATER = datetime.now(UTC) + timedelta(hours=1)
EARLIER = datetime.now(UTC) - timedelta(hours=1)


@contextmanager
def counted_statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    statements: list[str] = []
    fetch = asyncpg.Connection.fetch

    async def counting(self: asyncpg.Connection, query: str, *args: object, **more: object) -> object:
        statements.append(query)
        return await fetch(self, query, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "fetch", counting)
        yield statements


async def test_a_model_comes_back_as_it_was_stored(store: Store) -> None:
    wanted = a_model_wanted(
        env={"A": "b"}, meta={"x": [1, None]}, backend_parameters=["--ctx-size=1"], replicas=2
    )
    created = await store.models.create(wanted, 1)
    assert await store.models.get(created.id) == created == await store.models.by_name("tiny")
    assert (created.env, created.meta, created.backend_parameters) == (
        wanted.env,
        wanted.meta,
        ["--ctx-size=1"],
    )
    assert (await store.models.set_facts(created.id, categories=["llm"])).categories == ["llm"]
    assert (await store.models.get(created.id)).categories == ["llm"]


async def test_errors_are_one_line_that_says_what_to_do(store: Store) -> None:
    model = await store.models.create(a_model_wanted("x"), 1)
    line = "a model named 'x' exists already; choose another name or remove that one with `gpustack rm x`"
    with pytest.raises(Conflict) as caught:
        await store.models.create(a_model_wanted("x"), 1)
    assert str(caught.value) == line
    with pytest.raises(NotFound, match=r"^there is no model 42$"):
        await store.models.get(42)
    for absurd in (0, -1, 2**70):
        with pytest.raises(NotFound):
            await store.models.delete(absurd)
    with pytest.raises(NotFound, match="there is no cluster 99"):
        await store.models.create(a_model_wanted("y"), 99)
    with pytest.raises(InvalidInput, match="name stays"):
        await store.models.update(model.id, ModelUpdate(name="z", local_path="/z"))
    with pytest.raises(InvalidInput, match="cannot store"):
        await store.models.create(a_model_wanted("nul", description="a\0b"), 1)
    await store.models.delete(model.id)
    with pytest.raises(NotFound, match=f"there is no model {model.id}"):
        await store.instances.create(model, "x-1")


async def test_lists_are_searched_sorted_and_paged(store: Store) -> None:
    for name in ("alpha", "Beta_1", "beta-2", "gamma"):
        await store.models.create(a_model_wanted(name), 1)

    async def names(**how: Any) -> list[str]:
        return [m.name for m in (await store.models.list(**how)).items]

    assert await names(search="BETA", sort_by="-id") == ["beta-2", "Beta_1"]
    assert await names(search="a_") == ["Beta_1"]
    assert await names(search="%") == []
    assert await names(search="!") == []
    assert await names(page=2, per_page=3) == ["gamma"]
    assert len(await names(page=-1)) == 4
    page = (await store.models.list(page=2, per_page=2)).pagination
    assert (page.page, page.perPage, page.total, page.totalPage) == (2, 2, 4, 2)
    beyond = await store.models.list(page=9, per_page=2)
    assert (beyond.items, beyond.pagination.total) == ([], 4)
    assert (await store.models.list(page=-1)).pagination.perPage == 0
    with pytest.raises(InvalidInput, match=r"cannot sort by 'secret'; these can be sorted by: .*name"):
        await store.models.list(sort_by="secret")
    for bad in ({"page": 0}, {"page": -2}, {"page": 10**12}, {"per_page": 0}, {"per_page": 100000}):
        with pytest.raises(InvalidInput):
            await store.models.list(**bad)


async def test_an_instance_changes_only_from_the_state_that_is_expected(store: Store) -> None:
    model = await store.models.create(a_model_wanted(), 1)
    instance = await store.instances.create(model, "tiny-1")
    claim = Claim(ram=5, vram={0: 7})
    moved = await store.instances.update(
        instance.id,
        expect_state=InstanceState.PENDING,
        state=InstanceState.ANALYZING,
        computed_resource_claim=claim,
    )
    assert moved.state_since > instance.state_since
    assert (await store.instances.get(instance.id)).computed_resource_claim == claim
    same = await store.instances.update(instance.id, state=InstanceState.ANALYZING, pid=7)
    assert same.state_since == moved.state_since
    assert same.updated_at > moved.updated_at
    with pytest.raises(Conflict, match="'tiny-1' is analyzing by now, not pending"):
        await store.instances.update(instance.id, expect_state=InstanceState.PENDING, pid=1)
    with pytest.raises(NotFound, match="there is no worker 77"):
        await store.instances.update(instance.id, worker_id=77)
    with pytest.raises(TypeError, match="nonsense"):
        await store.instances.update(instance.id, nonsense=1)
    racers = [
        store.instances.update(
            instance.id, expect_state=InstanceState.ANALYZING, state=InstanceState.SCHEDULED, pid=n
        )
        for n in range(8)
    ]
    results = await asyncio.gather(*racers, return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert (
        await store.instances.list(state=InstanceState.SCHEDULED, model_id=model.id)
    ).pagination.total == 1


async def test_many_are_given_to_workers_at_once_without_those_that_are_late(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await store.models.create(a_model_wanted(replicas=9), 1)
    made = [await store.instances.create(model, f"tiny-{each}") for each in range(5)]
    ready = await store.workers.register(a_registration("one"), "digest-1", 1)
    lost = await store.workers.register(a_registration("two"), "digest-2", 1)
    await store.workers.set_state(lost.id, WorkerState.UNREACHABLE)
    await store.instances.update(made[1].id, state=InstanceState.ANALYZING)
    await store.instances.delete(made[2].id)
    homes = [ready.id, ready.id, ready.id, lost.id, ready.id]
    wanted = {
        each.id: {
            "worker_id": home,
            "backend": f"backend-{each.id}",
            "computed_resource_claim": Claim(ram=each.id, vram={0: 7}),
            "gpu_indexes": [0],
        }
        for each, home in zip(made, homes, strict=True)
    }
    with counted_statements(monkeypatch) as statements:
        given = await store.instances.schedule(wanted, expect=dict.fromkeys(wanted, InstanceState.PENDING))

    assert [each.id for each in given] == [made[0].id, made[4].id]
    assert len([each for each in statements if each.startswith("UPDATE model_instances")]) == 1
    for each in given:
        assert await store.instances.get(each.id) == each
        assert (each.state, each.worker_name) == (InstanceState.SCHEDULED, ready.name)
        assert (each.backend, each.gpu_indexes) == (f"backend-{each.id}", [0])
        assert each.computed_resource_claim == Claim(ram=each.id, vram={0: 7})
        assert each.state_since > made[0].state_since
    assert (await store.instances.get(made[3].id)).state is InstanceState.PENDING
    assert await store.instances.schedule({}, expect={}) == []


async def test_a_label_says_the_name_that_a_worker_was_given(store: Store) -> None:
    labels = {"worker-name": "box", "os": "linux"}
    first = await store.workers.register(a_registration(labels=labels), "d1", 1)
    second = await store.workers.register(a_registration(worker_uuid="uuid-of-other", labels=labels), "d2", 1)

    assert first.labels == labels
    assert (second.name, second.labels) == ("box-1", {"worker-name": "box-1", "os": "linux"})


async def test_a_worker_keeps_its_row_and_names_do_not_clash(store: Store) -> None:
    first = await store.workers.register(a_registration("box"), "t1", 1)
    others = await asyncio.gather(
        *(
            store.workers.register(a_registration("box", worker_uuid=f"other-{n}-uuid"), f"o{n}", 1)
            for n in range(5)
        )
    )
    assert first.name == "box"
    assert sorted(w.name for w in others) == [f"box-{n}" for n in range(1, 6)]
    again = await store.workers.register(
        a_registration("box", worker_uuid=others[0].worker_uuid, version="9", port=7), "renewed", 1
    )
    assert (again.id, again.name, again.version) == (others[0].id, others[0].name, "9")
    assert await store.workers.by_token_digest("o0") is None
    holder = await store.workers.by_token_digest("renewed")
    assert holder is not None
    assert (holder.id, holder.name, holder.version) == (again.id, again.name, again.version)
    assert await store.workers.door(again.id) == Door("127.0.0.1", 7, "d" * 32, others[0].worker_uuid)
    with pytest.raises(NotFound, match="there is no cluster 5"):
        await store.workers.register(a_registration("z"), "tz", 5)


async def test_heartbeats_of_many_workers_are_one_statement_without_events(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [await store.workers.register(a_registration(f"w{n:03}"), f"t{n}", 1) for n in range(30)]
    before = await store.events.last_number()
    beats = {w.id: Heartbeat(status=a_status(gpus=2) if w.id % 2 else None) for w in workers}
    beats[workers[0].id] = Heartbeat(status=a_status(1), installed_versions={"x": ["1"]})
    with counted_statements(monkeypatch) as statements:
        assert await store.workers.heartbeat_many({**beats, 9999: Heartbeat()}) == {9999}
    assert len(statements) == 1
    assert await store.events.last_number() == before
    for worker in workers[1:]:
        assert len((await store.workers.get(worker.id)).status.gpu_devices) == (2 if worker.id % 2 else 0)
    first = await store.workers.get(workers[0].id)
    assert first.installed_versions == {"x": ["1"]}
    assert first.heartbeat_time is not None
    assert first.heartbeat_time > workers[0].created_at
    assert (await store.clusters.default()).gpus == sum(2 for w in workers[1:] if w.id % 2) + 1
    assert await store.workers.heartbeat_many({}) == set()
    came = first.heartbeat_time - timedelta(minutes=1)
    await store.workers.heartbeat_many({workers[1].id: Heartbeat()}, {workers[1].id: came})
    assert (await store.workers.get(workers[1].id)).heartbeat_time == came
    assert (await store.workers.get(workers[0].id)).heartbeat_time == first.heartbeat_time

    await store.workers.set_state(workers[3].id, WorkerState.UNREACHABLE, "silent for 20 s")
    assert (await store.clusters.default()).ready_workers == 29
    before = await store.events.last_number()
    await store.workers.heartbeat_many(beats)
    (event,) = await store.events.after(before)
    assert event.changed_fields["state"] == ["unreachable", "ready"]


async def test_a_model_file_is_asked_for_and_answered(store: Store) -> None:
    worker = await store.workers.register(a_registration(), "t", 1)
    first = await store.model_files.request(worker.id, a_source("/m.gguf"))
    assert (first.request, first.state) == (1, ModelFileState.ANALYZING)
    again = await store.model_files.request(worker.id, a_source("/m.gguf"))
    assert (again.id, again.request) == (first.id, 2)
    facts = FactsDocument.model_validate(
        {"format": "gguf", "path": "/m.gguf", "weight_bytes": 5, "layers": 3}
    )
    with pytest.raises(Conflict, match="answers request 1"):
        await store.model_files.report(first.id, ModelFileReport(request=1, state=ModelFileState.READY))
    report = ModelFileReport(
        request=2, state=ModelFileState.READY, size=5, resolved_paths=["/m.gguf"], facts=facts
    )
    assert await store.model_files.report(first.id, report) == await store.model_files.get(first.id)
    key = source_key(a_source("/m.gguf"))
    (found,) = (await store.model_files.list(worker_id=worker.id, source_key=key)).items
    assert found.facts is not None
    assert found.facts.model_dump()["layers"] == 3
    with pytest.raises(NotFound, match="there is no worker 55"):
        await store.model_files.request(55, a_source("/m"))


async def test_how_far_a_download_is_makes_the_file_and_leaves_what_was_read(store: Store) -> None:
    worker = await store.workers.register(a_registration(), "t", 1)
    source = {"source": Source.HUGGINGFACE, "huggingface_repo_id": "org/name"}
    half = ModelFileDownload(
        **source, state="downloading", size=8, downloaded_size=4, download_rate=2, resolved_revision="a" * 40
    )
    made = await store.model_files.download(worker.id, half)
    assert (made.state, made.size, made.downloaded_size, made.request) == (
        ModelFileState.DOWNLOADING,
        8,
        4,
        0,
    )
    asked = await store.model_files.request(worker.id, made, "b" * 40)
    assert (asked.id, asked.request, asked.resolved_revision) == (made.id, 1, "b" * 40)
    # While it is read, a download changes only its own numbers.
    later = await store.model_files.download(worker.id, half.model_copy(update={"downloaded_size": 6}))
    assert (later.state, later.downloaded_size, later.resolved_revision) == (
        ModelFileState.ANALYZING,
        6,
        "b" * 40,
    )
    slow = ModelFileReport(request=1, state=ModelFileState.ANALYZING, state_message="trying again in 2 s")
    waiting = await store.model_files.report(made.id, slow)
    assert (waiting.state_message, waiting.resolved_revision) == ("trying again in 2 s", "b" * 40)
    facts = FactsDocument(format="gguf", path="org/name/m.gguf", weight_bytes=8)
    answer = ModelFileReport(
        request=1, state=ModelFileState.ANALYZED, size=8, resolved_revision="b" * 40, facts=facts
    )
    await store.model_files.report(made.id, answer)
    whole = half.model_copy(update={"state": ModelFileState.READY, "resolved_paths": ["/c/m.gguf"]})
    ready = await store.model_files.download(worker.id, whole)
    assert (ready.state, ready.facts, ready.resolved_revision) == (ModelFileState.READY, facts, "b" * 40)
    with pytest.raises(NotFound, match="there is no worker 55"):
        await store.model_files.download(55, half)


async def test_sessions_and_keys_end(store: Store) -> None:
    admin = await store.users.by_name("admin")
    assert (admin.password_hash, admin.is_admin, admin.require_password_change) == ("hash", True, True)
    await store.sessions.create(admin.id, "a", LATER)
    await store.sessions.create(admin.id, "b", LATER)
    await store.sessions.create(admin.id, "over", EARLIER)
    user = await store.sessions.user_by_digest("a")
    assert user is not None
    assert user.username == "admin"
    assert await store.sessions.user_by_digest("over") is None
    await store.sessions.delete_of_user(admin.id, except_digest="a")
    assert await store.sessions.user_by_digest("b") is None
    await store.sessions.delete("a")
    assert await store.sessions.user_by_digest("a") is None
    with pytest.raises(NotFound, match="there is no user 9"):
        await store.sessions.create(9, "c", LATER)

    wanted = ApiKeyCreate(name="ci", allowed_model_names=["tiny"])
    key = await store.api_keys.create(admin.id, wanted, "access", "digest", None)
    await store.api_keys.create(admin.id, ApiKeyCreate(name="old"), "access2", "digest2", EARLIER)
    (row,) = await store.api_keys.principals()
    assert (row.id, row.username, row.allowed_model_names, row.is_admin) == (key.id, "admin", ("tiny",), True)
    with pytest.raises(Conflict, match="named 'ci' already"):
        await store.api_keys.create(admin.id, wanted, "access3", "digest3", None)
    assert (await store.api_keys.list(search="CI")).items == [key]
    await store.api_keys.delete(key.id)
    assert await store.api_keys.principals() == []


async def test_passwords_change_and_the_hash_never_shows(store: Store) -> None:
    admin = await store.users.by_name("admin")
    await store.users.set_password(admin.id, "new-hash")
    changed = await store.users.by_name("admin")
    assert (changed.password_hash, changed.require_password_change) == ("new-hash", False)
    assert (await store.users.update(admin.id, full_name="Ada")).full_name == "Ada"
    assert all("hash" not in str(event.data) for event in await store.events.after(0))
    with pytest.raises(NotFound, match="no user named 'eve'"):
        await store.users.by_name("eve")


async def test_creating_and_listing_take_few_statements(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_statements(monkeypatch) as statements:
        await store.models.create(a_model_wanted(), 1)
    assert (
        len(statements) == 7
    )  # the row; who has its name; its route, name and target; the number, the events
    with counted_statements(monkeypatch) as statements:
        await store.models.list(per_page=100)
    assert len(statements) == 1
    with counted_statements(monkeypatch) as statements:
        await store.models.list(per_page=1)
    assert len(statements) == 2


async def test_only_what_an_engine_is_started_with_changes_the_digest(store: Store) -> None:
    model = await store.models.create(a_model_wanted(env={"A": "1", "B": "2"}), 1)
    instance = await store.instances.create(model, "tiny-1")

    async def updated(**fields: Any) -> str:
        wanted = ModelUpdate(**{"local_path": model.local_path, "env": model.env, **fields})
        return (await store.models.update(model.id, wanted)).spec_digest

    assert instance.spec_digest == model.spec_digest
    assert await updated(description="other", replicas=3, env={"B": "2", "A": "1"}) == model.spec_digest
    assert await updated(backend_parameters=["--ctx-size=64"]) != model.spec_digest
    assert await updated() == model.spec_digest


async def test_an_instance_placed_while_its_worker_moves_has_the_new_address(store: Store) -> None:
    worker = await store.workers.register(a_registration(ip="10.0.0.1"), "t1", 1)
    model = await store.models.create(a_model_wanted(), 1)
    placed = await store.instances.create(model, "tiny-1")
    other = await store.instances.create(model, "tiny-2")
    await store.instances.update(other.id, worker_id=worker.id)
    async with store.transaction() as tx:
        await tx.workers.register(a_registration(ip="10.0.0.2"), "t2", 1)
        placing = asyncio.create_task(store.instances.update(placed.id, worker_id=worker.id))
        await asyncio.sleep(0.2)

    assert (await placing).worker_ip == "10.0.0.2"
    assert (await store.instances.get(other.id)).worker_ip == "10.0.0.2"
    assert (await store.instances.update(other.id, worker_id=None)).worker_name == ""


async def test_how_a_model_is_served_comes_back_and_is_scaled_within_its_bounds(store: Store) -> None:
    wanted = a_model_wanted(
        min_replicas=0, max_replicas=3, priority=7, timeouts={"connect": 1.5}, queue={"slots": 2}
    )
    model = await store.models.create(wanted, 1)
    assert (model.min_replicas, model.max_replicas, model.priority, model.replicas) == (0, 3, 7, 1)
    assert (model.timeouts.connect, model.timeouts.first_byte, model.queue.slots) == (1.5, 600.0, 2)
    assert await store.models.get(model.id) == model

    scaled = await store.models.scale(model.id, 3, expect=1)
    assert (scaled.replicas, scaled.spec_digest) == (3, model.spec_digest)
    for replicas, expected in ((2, 1), (4, 3)):
        with pytest.raises(Conflict, match="was changed meanwhile"):
            await store.models.scale(model.id, replicas, expect=expected)
    fixed = await store.models.create(a_model_wanted("fixed"), 1)
    with pytest.raises(Conflict):
        await store.models.scale(fixed.id, 2, expect=1)
