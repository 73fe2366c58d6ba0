"""The hub's cache on disk: where ``huggingface_hub`` has things, and what we add to know that a model is whole.

models--ORG--NAME/blobs/SHA256                        a large file; ours in the making end with .gpustack.incomplete,
                                                      and go on where they are when they are wanted again
models--ORG--NAME/snapshots/COMMIT/PATH               links to them
models--ORG--NAME/refs/BRANCH                         the commit it stood for
models--ORG--NAME/.gpustack/DIGEST-COMMIT.json        the files that a pattern means at a commit
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from gpustack.kit.errors import GPUStackError, InvalidInput
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import stays_below, write_atomic
from gpustack.schemas.models import SourceFields
from gpustack.worker.artifacts.hub.api import MAIN, Listing, RepoFile, is_commit
from gpustack.worker.artifacts.hub.choice import Choice, choose

_OURS, _UNFINISHED = ".gpustack.incomplete", ".incomplete"
#: The library gives each attempt a name of its own, so that none is gone on with.
_ATTEMPT = re.compile(r"[^.]+\.[0-9a-f]{8}\.incomplete")
#: Seconds without a byte after which nobody goes on with what was begun, and after which an attempt has ended.
_FORGOTTEN, _ENDED = 7 * 86400.0, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """Repository, pattern and revision as a user gave them; the latter two may be empty."""

    repo: str
    pattern: str = ""
    revision: str = ""

    @classmethod
    def of(cls, source: SourceFields) -> HubSource:
        """Return what a model, or a model file, names."""
        return cls(
            repo=source.huggingface_repo_id,
            pattern=source.huggingface_filename,
            revision=source.huggingface_revision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A model all of whose files are here."""

    commit: str
    #: The (first) GGUF file, or the directory.
    path: Path
    size: int


class HubCache:
    """The cache below one directory. Blocks as long as its disk does."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def repo(self, repo: str) -> Path:
        """Return the folder of a repository."""
        return self.root / f"models--{repo.replace('/', '--')}"

    def snapshot(self, repo: str, commit: str) -> Path:
        """Return the folder with the files of a commit."""
        return self.repo(repo) / "snapshots" / commit

    def blob(self, repo: str, file: RepoFile) -> Path:
        """Return where a large file is once it is whole."""
        return self.repo(repo) / "blobs" / file.sha256

    def partial(self, repo: str, file: RepoFile) -> Path:
        """Return where a large file grows."""
        # Not the library's own name: its older versions go on with what they find there, under another lock.
        return self.repo(repo) / "blobs" / f"{file.sha256}{_OURS}"

    def lock(self, repo: str, file: RepoFile) -> Path:
        """Return the lock of whoever lets a large file grow."""
        return self.root / ".locks" / self.repo(repo).name / f"{file.sha256}.gpustack.lock"

    def missing(self, repo: str, commit: str, files: tuple[RepoFile, ...]) -> tuple[RepoFile, ...]:
        """Return the files that are not here, or not whole, at their places in the snapshot."""
        folder = self.snapshot(repo, commit)
        return tuple(each for each in files if _size(folder / each.path) != each.size)

    def present(self, repo: str, file: RepoFile) -> int:
        """Return the bytes of a file that need not be fetched any more."""
        if not file.sha256:
            return 0
        whole = _size(self.blob(repo, file))
        if whole == file.size:
            return file.size
        return min(file.size, _size(self.partial(repo, file)) or 0)

    def remember(self, source: HubSource, commit: str, choice: Choice) -> None:
        """Note which files the source means at a commit, so that nobody has to ask the hub."""
        path = self._note(source, commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [[each.path, each.size, each.sha256] for each in choice.files]
        write_atomic(path, json.dumps({"main": choice.main, "files": files}))

    def point(self, source: HubSource, commit: str) -> None:
        """Let the source's branch stand for a commit, as the library does."""
        if not is_commit(source.revision):
            path = self._ref(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, commit)

    def sweep(self) -> None:
        """Remove what was begun, and nobody fetches now nor goes on with."""
        for path in self.root.glob(f"models--*/blobs/*{_UNFINISHED}"):
            with contextlib.suppress(OSError, GPUStackError):
                patience = _ENDED if _ATTEMPT.fullmatch(path.name) else _FORGOTTEN
                if time.time() - path.stat().st_mtime > patience:
                    self._remove(path)

    def _remove(self, path: Path) -> None:
        """Remove a file in the making, unless somebody holds its lock: ours, or the library's."""
        digest, ours = path.name.split(".")[0], path.name.endswith(_OURS)
        folder = self.root / ".locks" / path.parent.parent.name
        lock = FileLock(folder / (f"{digest}.gpustack.lock" if ours else f"{digest}.lock"))
        folder.mkdir(parents=True, exist_ok=True)
        if lock.acquire():
            try:
                path.unlink()
            finally:
                lock.release()

    def chosen(self, source: HubSource, commit: str) -> Choice | None:
        """Return what was remembered; None when nothing was."""
        try:
            value = json.loads(self._note(source, commit).read_text(encoding="utf-8"))
            files = tuple(
                RepoFile(path=path, size=size, sha256=digest) for path, size, digest in value["files"]
            )
            return Choice(files=files, main=str(value["main"])) if files else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def whole(self, source: HubSource, commit: str = "") -> Whole | None:
        """Return the model when all its files are here at ``commit``, or at the commit last known of its branch."""
        commit = commit or self._last(source)
        if not is_commit(commit) or (choice := self.chosen(source, commit)) is None:
            return None
        if self.missing(source.repo, commit, choice.files):
            return None
        path = self.snapshot(source.repo, commit) / choice.main
        return Whole(commit=commit, path=path, size=choice.size)

    def lying(self, source: HubSource, commit: str = "") -> Whole | None:
        """Do :meth:`whole`, also for what other tools have put here: then what lies in the snapshot is all there is."""
        if (whole := self.whole(source, commit)) is not None:
            return whole
        commit = commit or self._last(source)
        folder = self.snapshot(source.repo, commit)
        if not is_commit(commit) or self._note(source, commit).exists():
            return None
        here = [
            (each.relative_to(folder).as_posix(), size)
            for each in sorted(folder.rglob("*"))
            if each.is_file() and (size := _size(each)) is not None
        ]
        files = tuple(RepoFile(path=path, size=size) for path, size in here)
        try:
            choice = choose(Listing(repo=source.repo, commit=commit, files=files), source.pattern)
        except InvalidInput:
            return None
        return Whole(commit=commit, path=folder / choice.main, size=choice.size)

    def _last(self, source: HubSource) -> str:
        if is_commit(source.revision):
            return source.revision
        with contextlib.suppress(OSError, UnicodeDecodeError, InvalidInput):
            return self._ref(source).read_text(encoding="ascii").strip()
        return ""

    def _ref(self, source: HubSource) -> Path:
        revision = source.revision or MAIN
        if not stays_below(revision):
            raise InvalidInput(f"revision {revision!r} of {source.repo} is no branch, tag or commit")
        return self.repo(source.repo) / "refs" / revision

    def _note(self, source: HubSource, commit: str) -> Path:
        digest = hashlib.sha256(source.pattern.encode()).hexdigest()[:16]
        return self.repo(source.repo) / ".gpustack" / f"{digest}-{commit}.json"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
