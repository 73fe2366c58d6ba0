"""A backup holds everything, a restore brings everything back, and either happens wholly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from piccolo.querystring import QueryString

from gpustack.db import Store, backup, migrations
from gpustack.db.backup import archive
from gpustack.db.repositories.base import sql
from gpustack.db.source import source_of
from gpustack.kit.errors import Conflict, GPUStackError, InvalidInput, NewerData, NotFound, SettingsError
from support.old_database import at_the_first_step
from support.postgres import PostgresServer
from support.records import a_model_wanted, a_registration, a_source

TOKEN = "the registration token"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with what belongs to a database, and much that does not."""
    place = tmp_path / "data"
    (place / "worker").mkdir(parents=True)
    (place / "run").mkdir()
    (place / "token").write_text(TOKEN)
    (place / "worker" / "worker_uuid").write_text("uuid")
    (place / "run" / "cli_token").write_text("not kept")
    (place / "worker" / ".half.tmp").write_text("not kept")
    (place / "engine.bin").write_bytes(b"not kept")
    return place


@pytest.fixture
async def full(store: Store) -> Store:
    """A store with rows in every table that has some in life, and awkward values in them."""
    model = await store.models.create(a_model_wanted(description="tïny 'quoted' \\ \u2028 \n"), 1)
    worker = await store.workers.register(a_registration(), "digest", 1)
    await store.model_files.request(worker.id, a_source("/m"))
    await store.instances.create(model, "tiny-1")
    await store._pool.fetch(many_clusters(1200))
    return store


def many_clusters(count: int) -> QueryString:
    """Return what makes rows of up to 1600 characters."""
    return sql(
        "INSERT INTO clusters (name, description, provider, is_default, state, created_at, updated_at) "
        "SELECT 'c' || n, repeat(md5(n::text), n % 50 + 1), '', false, '', now(), now() "
        f"FROM generate_series(1, {count}) n"
    )


async def everything(store: Store) -> dict[str, list[Any]]:
    steps = [name for name, _ in migrations.STEPS]
    return {
        table: [dict(row) for row in await store._pool.fetch(sql(f"SELECT * FROM {table} ORDER BY 1"))]
        for table in migrations.tables_after(steps)
        if table not in ("events", "event_counter")
    }


async def load(url: str, data_dir: Path, path: Path, *, replace: bool = False) -> None:
    connection = await source_of(url, application="a restore").open()
    try:
        await backup.load(connection, "the database", data_dir, path, replace=replace)
    finally:
        connection.terminate()


@pytest.fixture
async def written(full: Store, data_dir: Path) -> Path:
    done = await backup.write(full, data_dir, data_dir.parent / "it.tar.gz")
    assert done.rows > 1200
    assert done.path.stat().st_size == done.size
    return done.path


async def test_what_was_backed_up_comes_back_as_it_was(
    full: Store, written: Path, database_url: str, tmp_path: Path
) -> None:
    assert written.stat().st_mode & 0o777 == 0o600
    before, new_dir = await everything(full), tmp_path / "new"
    await load(database_url, new_dir, written)
    async with await Store.open(database_url) as restored:
        assert await restored.migrate() == []
        assert await everything(restored) == before
        ids = {each.id for each in (await restored.models.list()).items}
        assert (await restored.models.create(a_model_wanted("next"), 1)).id > max(ids)
    assert (new_dir / "token").read_text() == TOKEN
    assert (new_dir / "token").stat().st_mode & 0o777 == 0o600
    assert sorted(str(each.relative_to(new_dir)) for each in new_dir.rglob("*")) == [
        "token",
        "worker",
        "worker/worker_uuid",
    ]


async def test_numbers_that_were_given_once_are_not_given_again(
    full: Store, data_dir: Path, database_url: str, tmp_path: Path
) -> None:
    last = await full.models.create(a_model_wanted("removed"), 1)
    await full.models.delete(last.id)
    done = await backup.write(full, data_dir, tmp_path / "b.tar.gz")
    await load(database_url, tmp_path / "new", done.path)
    async with await Store.open(database_url) as restored:
        assert (await restored.models.create(a_model_wanted("next"), 1)).id > last.id


async def test_numbers_that_were_given_after_the_backup_are_not_given_again(
    full: Store, written: Path, database_url: str, data_dir: Path, tmp_path: Path
) -> None:
    """Engines and watchers may go by them, whether the database of then is replaced or gone."""
    url, later = full._pool._source.address.url, []
    for number in range(3):
        model = await full.models.create(a_model_wanted(f"later-{number}"), 1)
        later.append(await full.instances.create(model, f"later-{number}-1"))
    for target, place in ((database_url, tmp_path / "new"), (url, data_dir)):
        if target == url:
            await full._pool.fetch(sql("SELECT setval('model_instances_id_seq', 5000000)"))
            await full.close()
        await load(target, place, written, replace=target == url)
        async with await Store.open(target) as restored:
            model = await restored.models.create(a_model_wanted("next"), 1)
            found = await restored.instances.create(model, "next-1")
            assert found.id > (5_000_000 if target == url else later[-1].id)


async def test_a_second_restore_gives_no_event_number_again(
    written: Path, database_url: str, tmp_path: Path
) -> None:
    await load(database_url, tmp_path / "new", written)
    async with await Store.open(database_url) as restored:
        await restored.models.create(a_model_wanted("between"), 1)
        seen = await restored.events.last_number()
    await load(database_url, tmp_path / "new", written, replace=True)
    async with await Store.open(database_url) as restored:
        assert await restored.events.last_number() > seen


async def test_files_that_cannot_be_put_in_place_are_said_and_the_database_is_there(
    written: Path, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = tmp_path / "new", Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target == place / "token":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(
        GPUStackError, match=r"the database is restored, the files in .* run it again with --rep"
    ):
        await load(database_url, place, written)
    monkeypatch.undo()
    await load(database_url, place, written, replace=True)
    assert (place / "token").read_text() == TOKEN


def test_what_a_killed_restore_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".restore-abc" / "worker").mkdir(parents=True)
    (tmp_path / "token").write_text(TOKEN)
    backup.discard_staged(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["token"]


async def test_a_file_that_cannot_be_read_is_named(
    store: Store, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(GPUStackError, match=r"data/worker cannot be read: Permission denied"):
        await backup.write(store, data_dir, tmp_path / "it.tar.gz")


async def test_a_restore_does_not_take_itself_for_a_server(
    full: Store, written: Path, data_dir: Path
) -> None:
    url = full._pool._source.address.url
    await full.close()
    for _ in range(5):
        async with await Store.open(url, application="gpustack restore") as own:
            await own.ping()
            await load(url, data_dir, written, replace=True)


async def test_who_watched_is_told_to_read_again(
    full: Store, written: Path, database_url: str, tmp_path: Path
) -> None:
    for i in range(5):
        await full.models.create(a_model_wanted(f"after-{i}"), 1)
    seen = await full.events.last_number()
    await load(database_url, tmp_path / "new", written)
    async with await Store.open(database_url) as restored, restored.feed() as feed:
        for _ in range(10):
            await restored.models.create(a_model_wanted(f"new-{_}"), 1)
        with pytest.raises(NotFound, match="read the list again"):
            await anext(feed.subscribe({"models"}, since=seen))
        number = await restored.events.last_number()
        await restored.models.create(a_model_wanted("last"), 1)
        assert (await anext(feed.subscribe({"models"}, since=number))).data["name"] == "last"


async def test_it_is_the_state_of_one_moment(store: Store, data_dir: Path, tmp_path: Path) -> None:
    """Model and instance come and go in one transaction; no backup sees one without the other."""
    ending = asyncio.Event()

    async def churn() -> None:
        while not ending.is_set():
            async with store.transaction() as tx:
                model = await tx.models.create(a_model_wanted(), 1)
                await tx.instances.create(model, "tiny-1")
            async with store.transaction() as tx:
                for each in (await tx.instances.list()).items:
                    await tx.instances.delete(each.id)
                await tx.models.delete(model.id)

    churning = asyncio.create_task(churn())
    for number in range(10):
        done = await backup.write(store, data_dir, tmp_path / f"{number}.tar.gz")
        rows = {table.name: table.rows for table in backup.verify(done.path).tables}
        assert rows["models"] == rows["model_instances"]
    ending.set()
    await churning


async def test_a_database_with_rows_is_replaced_only_when_that_is_wanted(
    full: Store, written: Path, data_dir: Path
) -> None:
    url = full._pool._source.address.url
    await full.models.create(a_model_wanted("made-later"), 1)
    before = await everything(full)
    (data_dir / "token").write_text("another")
    await full.close()
    with pytest.raises(Conflict, match="other content; --replace"):
        await load(url, data_dir, written)
    (data_dir / "token").write_text(TOKEN)
    with pytest.raises(Conflict, match="holds data already; --replace"):
        await load(url, data_dir, written)
    async with await Store.open(url) as store:
        assert await everything(store) == before
    (data_dir / "token").write_text("another")
    await load(url, data_dir, written, replace=True)
    async with await Store.open(url) as store:
        assert "made-later" not in {model.name for model in (await store.models.list()).items}
    assert (data_dir / "token").read_text() == TOKEN


async def test_a_database_that_a_server_works_on_is_left_alone(
    full: Store, written: Path, data_dir: Path
) -> None:
    with pytest.raises(Conflict, match="a GPUStack works on the database; stop it first"):
        await load(full._pool._source.address.url, data_dir, written, replace=True)


async def test_tables_of_something_else_are_not_touched(
    written: Path, database_url: str, tmp_path: Path
) -> None:
    async with await Store.open(database_url) as store:
        await store._pool.fetch(sql("CREATE TABLE thesis (mine TEXT)"))
    with pytest.raises(SettingsError, match="thesis"):
        await load(database_url, tmp_path / "new", written, replace=True)


async def test_an_older_backup_is_brought_up(
    postgres_server: PostgresServer, database_url: str, data_dir: Path, tmp_path: Path
) -> None:
    await at_the_first_step(database_url)
    async with await Store.open(database_url) as old:
        done = await backup.write(old, data_dir, tmp_path / "old.tar.gz")
    assert backup.verify(done.path).steps == ("0001_initial",)
    new = postgres_server.url(await postgres_server.create_database())
    await load(new, tmp_path / "new", done.path)
    async with await Store.open(new) as store:
        assert await store.migrate() == []
        assert [model.name for model in (await store.models.list()).items] == ["old"]
        assert [(each.name, each.pid) for each in (await store.instances.list()).items] == [("old-1", 42)]


def repacked(path: Path, change: dict[str, Any]) -> Path:
    """Return a copy with other content in its first and last member."""
    copy = path.with_name("changed.tar.gz")
    with tarfile.open(path) as old, tarfile.open(copy, "w:gz") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name.endswith(".json"):
                content = json.dumps(json.loads(content) | change).encode()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return copy


@pytest.mark.parametrize("change", [{"format_version": 2}, {"steps": ["0001_initial", "0999_later"]}])
async def test_a_newer_backup_is_refused(
    written: Path, database_url: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    newer = repacked(written, change)
    with pytest.raises(NewerData, match="newer"):
        await load(database_url, tmp_path / "new", newer)


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.5, 0.9, 0.999])
async def test_a_truncated_file_is_refused_and_changes_nothing(
    written: Path, database_url: str, tmp_path: Path, part: float
) -> None:
    data = written.read_bytes()
    written.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InvalidInput, match="backup") as raised:
        await load(database_url, tmp_path / "new", written)
    assert "\n" not in str(raised.value)
    async with await Store.open(database_url) as store:
        assert (await store.missing_steps()).fresh


def holds(compressed: bytes, content: bytes) -> bool:
    with contextlib.suppress(OSError, EOFError, zlib.error):
        return gzip.decompress(compressed) == content
    return False


async def test_flipped_bits_are_found(written: Path) -> None:
    data = written.read_bytes()
    content, found = gzip.decompress(data), 0
    for place in range(200, len(data), len(data) // 40):
        flipped = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
        if holds(flipped, content):
            continue  # a reference to the same bytes elsewhere: nothing is damaged
        written.write_bytes(flipped)
        with pytest.raises(GPUStackError) as raised:
            archive.verify(written)
        assert "\n" not in str(raised.value)
        found += 1
    assert found > 20


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", gzip.compress(b"garbage"), gzip.compress(b"\0" * 20480)],
    ids=["empty", "garbage", "gzip", "zeros"],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "holiday.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"holiday.tar.gz is no.* backup of GPUStack") as raised:
        archive.verify(path)
    assert "\n" not in str(raised.value)


def test_another_archive_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(__file__)
    with pytest.raises(InvalidInput, match="is not a backup of GPUStack"):
        archive.verify(tmp_path / "a.tar.gz")
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        archive.verify(tmp_path / "none.tar.gz")
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        archive.verify(tmp_path)


@pytest.mark.parametrize(
    "name", ["../../etc/evil", "run/cli_token", "worker/../../evil", "/evil", "worker/.hidden"]
)
async def test_a_backup_writes_nowhere_else(database_url: str, tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.tar.gz"
    with archive.Writer(path, ["0001_initial"]) as writer:
        writer.file(name, b"evil")
        writer.finish([], {name: archive.hashlib.sha256(b"evil").hexdigest()})
    with pytest.raises(InvalidInput, match="none of GPUStack's"):
        await load(database_url, tmp_path / "new", path)
    assert not list(tmp_path.rglob("*evil"))
    assert not list((tmp_path / "new").iterdir())


async def test_rows_that_contradict_each_other_change_nothing(
    written: Path, database_url: str, tmp_path: Path
) -> None:
    """A file that is whole, and yet cannot be stored."""
    manifest = backup.verify(written)
    path = tmp_path / "wrong.tar.gz"
    lines = b'{"id": 1, "user_id": 99, "digest": "d", "expires_at": "2026-01-01T00:00:00+00:00", "created_at": "never"}\n'
    with archive.Writer(path, list(manifest.steps)) as writer:
        writer.piece("sessions", 1, lines)
        entry = archive.TableEntry(
            name="sessions", rows=1, sha256=archive.hashlib.sha256(lines).hexdigest(), last_id=1
        )
        writer.finish([entry], {})
    with pytest.raises(InvalidInput, match="table sessions cannot be restored"):
        await load(database_url, tmp_path / "new", path)
    async with await Store.open(database_url) as store:
        assert (await store.missing_steps()).fresh


async def test_there_is_no_half_file(store: Store, data_dir: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.tar.gz"
    there.write_text("mine")
    with pytest.raises(Conflict, match="exists already"):
        await backup.write(store, data_dir, there)
    assert there.read_text() == "mine"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))  # as a full disk
    try:
        with pytest.raises(GPUStackError, match=r"full.tar.gz cannot be written: File too large"):
            await backup.write(store, data_dir, tmp_path / "full.tar.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in tmp_path.iterdir() if "tar" in each.name] == ["there.tar.gz"]


async def test_only_the_last_automatic_ones_are_kept(store: Store, data_dir: Path) -> None:
    made = []
    for number in range(7):
        await store.models.create(a_model_wanted(f"m-{number}"), 1)
        made.append(await backup.automatic(store, data_dir, "before-upgrade"))
    await store.models.create(a_model_wanted("last"), 1)
    (data_dir / "backups" / "mine.tar.gz").write_text("mine")
    (data_dir / "backups" / ".x.partial").write_text("half")
    made.append(await backup.automatic(store, data_dir, "before-upgrade"))
    assert sorted((data_dir / "backups").iterdir()) == sorted(
        [*made[-5:], data_dir / "backups" / "mine.tar.gz"]
    )


async def test_of_the_same_there_is_one_automatic_backup(store: Store, data_dir: Path) -> None:
    first = await backup.automatic(store, data_dir, "before-upgrade")
    assert await backup.automatic(store, data_dir, "before-upgrade") == first
    first.write_bytes(first.read_bytes()[:-40])
    second = await backup.automatic(store, data_dir, "before-upgrade")
    assert second != first
    assert archive.verify(second).rows > 0
    await store.users.set_password(
        (await store.users.list()).items[0].id, "another hash", require_change=False
    )
    assert await backup.automatic(store, data_dir, "before-upgrade") not in (first, second)


@pytest.mark.slow
async def test_memory_does_not_grow_with_the_database(store: Store, data_dir: Path, tmp_path: Path) -> None:
    """80 MB of rows, with less above what the program itself needs."""
    await store._pool.fetch(many_clusters(100_000))
    code = (
        "import asyncio, resource, sys\nfrom pathlib import Path\nfrom gpustack.db import Store, backup\n"
        "async def main():\n"
        "    async with await Store.open(sys.argv[1]) as store:\n"
        "        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "        done = await backup.write(store, Path(sys.argv[2]), Path(sys.argv[3]))\n"
        "        backup.verify(done.path)\n"
        "        print(done.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "asyncio.run(main())"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, store._pool._source.address.url, str(data_dir), str(tmp_path / "big.tar.gz")],
        check=True, capture_output=True, text=True, env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    rows, grown = map(int, done.stdout.split())
    assert rows > 100_000
    assert grown < 40_000
