"""Model files: one source on one worker each."""

from __future__ import annotations

from typing import Any

from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository
from gpustack.db.tables import ModelFile
from gpustack.kit.errors import Conflict
from gpustack.schemas.common import Page
from gpustack.schemas.model_files import (
    ModelFileDownload,
    ModelFilePublic,
    ModelFileReport,
    ModelFileState,
)
from gpustack.schemas.models import SourceFields, source_name
from gpustack.schemas.models import source_key as key_of

_SOURCE = (
    "source",
    "local_path",
    "huggingface_repo_id",
    "huggingface_filename",
    "huggingface_revision",
    "bundled_name",
)


class ModelFiles(Repository[ModelFilePublic]):
    """What workers know of sources."""

    table = ModelFile
    public = ModelFilePublic
    noun = "model file"
    topic = "model-files"
    searched = "local_path"
    sortable = frozenset({"id", "created_at", "updated_at", "local_path", "state", "size", "worker_id"})

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        worker_id: int | None = None,
        source_key: str | None = None,
        state: ModelFileState | None = None,
    ) -> Page[ModelFilePublic]:
        """Return one page; ``page`` -1 is everything."""
        filters = {"worker_id": worker_id, "source_key": source_key, "state": state}
        return await self._page(page, per_page, search, sort_by, filters)

    async def request(self, worker_id: int, source: SourceFields, revision: str = "") -> ModelFilePublic:
        """Ask the worker to read the source (anew): state ANALYZING, ``request`` one more.

        ``revision`` is the commit to read; empty is what the source's own revision stands for by now. What was known
        stays until the answer. NotFound when the worker is gone; Conflict when somebody asks for
        the same thing for the first time at the same moment, whose request then serves both.
        """
        key = key_of(source)
        asked = {
            "state": ModelFileState.ANALYZING,
            "state_message": "",
            "resolved_revision": revision,
        }
        taken = {"model_files_worker_id_source_key_key": f"{source_name(source)} is being asked for already"}
        gone = {"model_files_worker_id_fkey": f"there is no worker {worker_id}"}
        with conflicts(taken, gone):
            async with self._session.writing() as tx:
                same = (ModelFile.worker_id == worker_id) & (ModelFile.source_key == key)
                if found := await self._find(tx, same, lock=True):
                    return await self._change(tx, found[0], {**asked, "request": found[0].request + 1})
                return await self._insert(tx, {**_nothing_known(worker_id, source), **asked, "request": 1})

    async def report(self, file_id: int, report: ModelFileReport) -> ModelFilePublic:
        """Store a worker's answer; Conflict when it answers an older request than the last."""
        async with self._session.writing() as tx:
            old = await self._get(tx, file_id, lock=True)
            if report.request != old.request:
                raise Conflict(
                    f"this answers request {report.request} for {source_name(old)}; now {old.request} is asked"
                )
            names = _INTERIM if report.state is ModelFileState.ANALYZING else _REPORTED
            return await self._change(tx, old, {name: getattr(report, name) for name in names})

    async def download(self, worker_id: int, report: ModelFileDownload) -> ModelFilePublic:
        """Store how far a worker is with the files of a source; the first report of one makes its row.

        A file that is being read stays so: the answer is on its way. NotFound when the worker is gone.
        """
        same = (ModelFile.worker_id == worker_id) & (ModelFile.source_key == key_of(report))
        taken = {
            "model_files_worker_id_source_key_key": f"{source_name(report)} is being reported on already"
        }
        gone = {"model_files_worker_id_fkey": f"there is no worker {worker_id}"}
        values = {name: getattr(report, name) for name in _DOWNLOADED}
        with conflicts(taken, gone):
            async with self._session.writing() as tx:
                if not (found := await self._find(tx, same, lock=True)):
                    made = {**_nothing_known(worker_id, report), **values, "request": 0}
                    return await self._insert(tx, made)
                old = found[0]
                if old.state is ModelFileState.ANALYZING:
                    values = {name: values[name] for name in ("downloaded_size", "download_rate")}
                elif old.facts is not None and old.resolved_revision:
                    # The facts are those of this commit, which every instance is pinned to.
                    values["resolved_revision"] = old.resolved_revision
                return await self._change(tx, old, values)


def _nothing_known(worker_id: int, source: SourceFields) -> dict[str, Any]:
    """Return the columns of a new row, all but its state and request."""
    return {
        "worker_id": worker_id,
        **{name: getattr(source, name) for name in _SOURCE},
        "source_key": key_of(source),
        "size": 0,
        "resolved_revision": "",
        "downloaded_size": 0,
        "download_rate": 0,
        "resolved_paths": [],
        "facts": None,
    }


#: What a worker tells before its answer: why that takes long.
_INTERIM = ("state", "state_message")
_DOWNLOADED = (
    "state",
    "state_message",
    "size",
    "downloaded_size",
    "download_rate",
    "resolved_paths",
    "resolved_revision",
)
_REPORTED = ("state", "state_message", "size", "resolved_paths", "resolved_revision", "facts")
