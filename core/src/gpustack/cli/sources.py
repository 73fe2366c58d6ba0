"""What ``gpustack deploy`` was given: a path on the worker, a model of the catalog, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import click

from gpustack.cli.target import Connection
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import NotFound
from gpustack.kit.text import shorten

_PREFIX = re.compile(r"^(hf:(//)?|(https://)?(hf\.co|huggingface\.co)/)")
_REPO = re.compile(r"^(?P<repo>[^:@/]+(/[^:@/]+)?)(?P<rest>.*)$", re.DOTALL)
_LIKE_A_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*([:@].*)?$")
_SUFFIXES = (".gguf", ".safetensors")
_BUNDLED = "bundled:"
#: What a model of the catalog can be called.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_FORM = "hf:ORG/NAME[:PATTERN][@REVISION], such as hf:org/name-GGUF:Q4_K_M"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """The options that name a repository one part each."""

    repo: str = ""
    filename: str = ""
    revision: str = ""

    def __bool__(self) -> bool:
        return bool(self.repo or self.filename or self.revision)


#: Returns the names of the catalog.
Catalog = Callable[[], Sequence[str]]


def read_source(
    text: str | None, options: HubOptions, connection: Connection, catalog: Catalog
) -> tuple[dict[str, str], str]:
    """Return the fields of the model's source, and what to make its name of. Raises errors of one line.

    ``catalog`` is asked only when ``text`` may be a name of it.
    """
    if text is None:
        if not options.repo:
            raise click.UsageError(
                f"name what to serve: a path on the worker, a name of `gpustack catalog`, or {_FORM}"
            )
        return _hub(options.repo, options.filename, options.revision)
    if options.repo:
        raise click.UsageError("give either SOURCE or --huggingface-repo, not both")
    if _PREFIX.match(text):
        repo, pattern, revision = read_repository(text)
        return _hub(repo, pattern or options.filename, revision or options.revision)
    if options:
        raise click.UsageError("--huggingface-filename and --huggingface-revision go with a repository")
    if text.startswith(_BUNDLED):
        name = text.removeprefix(_BUNDLED)
        if name not in (names := catalog()):
            raise NotFound(_not_in_catalog(name, names))
        return _bundled(name)
    if _NAME.fullmatch(text) and not text.endswith(_SUFFIXES):
        return _by_name(text, connection, catalog())
    path = _absolute(text, connection)
    return {"local_path": path}, path


def _by_name(text: str, connection: Connection, names: Sequence[str]) -> tuple[dict[str, str], str]:
    """Read what may be a name of the catalog as well as a file or directory here."""
    here = connection.local and Path(text).exists()
    if text in names and here:
        raise WrongUsage(
            f"{text} is a model of the catalog, and a file or directory here; write {_BUNDLED}{text} or ./{text}"
        )
    if text in names:
        return _bundled(text)
    if not here:
        unknown = _not_in_catalog(text, names)
        if connection.local:
            raise NotFound(f"there is no file {shorten(text, 160)} here; {unknown}")
        raise NotFound(f"{unknown}; for a file on the worker of {connection.url} give the whole path")
    path = _absolute(text, connection)
    return {"local_path": path}, path


def _not_in_catalog(name: str, names: Sequence[str]) -> str:
    return f"the catalog has no model {shorten(name, 160)!r}; it has: {', '.join(names) or 'none'}"


def _bundled(name: str) -> tuple[dict[str, str], str]:
    return {"source": "bundled", "bundled_name": name}, name


def read_repository(text: str) -> tuple[str, str, str]:
    """Return repository, pattern and revision of ``hf:org/name:pattern@revision``; the latter two may be empty.

    >>> read_repository("hf:org/name:Q4_K_M@v1")
    ('org/name', 'Q4_K_M', 'v1')
    """
    whole = _PREFIX.sub("", text)
    if (match := _REPO.match(whole)) is None:
        raise WrongUsage(f"{shorten(text, 160)!r} names no repository; write it as {_FORM}")
    rest = match["rest"]
    if rest.startswith("@"):
        revision, _, pattern = rest[1:].partition(":")
    elif rest.startswith(":"):
        pattern, _, revision = rest[1:].rpartition("@") if "@" in rest else (rest[1:], "", "")
    elif rest.strip("/"):
        raise WrongUsage(
            f"{shorten(text, 160)!r} is not of the form {_FORM}; did you mean hf:{match['repo']}:{shorten(rest.strip('/'), 80)}?"
        )
    else:
        pattern = revision = ""
    return match["repo"], pattern, revision


def default_name(path: str) -> str:
    """Return a name made of the file's: ``/m/Tiny Chat.Q4_K_M.gguf`` gives ``Tiny-Chat.Q4_K_M``."""
    pure = PurePath(path)
    stem = pure.stem if pure.suffix.lower() in _SUFFIXES else pure.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:128].rstrip("-._")
    if not name:
        raise WrongUsage(f"{path} gives no name; choose one with --name")
    return name


def _hub(repo: str, filename: str, revision: str) -> tuple[dict[str, str], str]:
    fields = {
        "source": "huggingface",
        "huggingface_repo_id": repo,
        "huggingface_filename": filename,
        "huggingface_revision": revision,
    }
    return fields, repo


def _absolute(path: str, connection: Connection) -> str:
    """Return the path as the worker sees it; a local one is looked at here, where the answer is quickest."""
    if not path.strip():
        raise WrongUsage("the path is empty; name a model file or directory")
    if not connection.local:
        if not path.startswith("/") and not re.match(r"^[A-Za-z]:[\\/]", path):
            raise WrongUsage(
                f"{shorten(path, 160)} is relative, and {connection.url} is another machine; give the whole path on its worker"
                + _repository_hint(path)
            )
        return path
    whole = Path(path).expanduser().absolute()
    try:
        whole.stat()
    except PermissionError:
        # The worker may be another user and see it.
        return str(whole)
    except OSError as error:
        raise NotFound(
            f"{shorten(str(whole), 240)} is not there: {error.strerror}{_repository_hint(path)}"
        ) from error
    return str(whole)


def _repository_hint(path: str) -> str:
    if not _LIKE_A_REPO.match(path):
        return ""
    return f"; for the repository on the Hugging Face Hub write hf:{path}"
