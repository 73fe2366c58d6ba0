"""Model files: what one worker knows of one source."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from gpustack.schemas.common import FromWorker, Output, Record
from gpustack.schemas.models import Source


class ModelFileState(StrEnum):
    """Whether the worker has the files."""

    ANALYZING = "analyzing"
    #: The facts are known, from the hub; the files are not here.
    ANALYZED = "analyzed"
    DOWNLOADING = "downloading"
    READY = "ready"
    ERROR = "error"


class FactsDocument(Output):
    """The facts read from the files; the fields of ``gpustack.plugin.ModelFacts``."""

    model_config = ConfigDict(extra="allow")

    format: str
    path: str
    weight_bytes: int


class ModelFilePublic(Record):
    """One source on one worker."""

    worker_id: int
    source: Source
    local_path: str = ""
    huggingface_repo_id: str = ""
    huggingface_filename: str = ""
    huggingface_revision: str = ""
    bundled_name: str = ""
    #: The commit that the revision stood for when the facts were read; empty for files without one.
    resolved_revision: str = ""
    #: Digest over the source's fields: equal sources have equal keys.
    source_key: str
    state: ModelFileState
    state_message: str = ""
    #: Grows with every request to read the files anew; a report answers one request.
    request: int = 1
    size: int = 0
    #: Bytes of ``size`` that are here, and bytes that came in the last second, while DOWNLOADING.
    downloaded_size: int = 0
    download_rate: int = 0
    resolved_paths: list[str] = []
    facts: FactsDocument | None = None


class ModelFileReport(FromWorker):
    """What a worker found."""

    request: int
    state: ModelFileState
    state_message: str = Field(default="", max_length=4096)
    size: int = 0
    resolved_paths: list[str] = []
    resolved_revision: str = Field(default="", max_length=64)
    facts: FactsDocument | None = None


class ModelFileDownload(FromWorker):
    """How far a worker is with the files of a source."""

    source: Source
    huggingface_repo_id: str = Field(default="", max_length=200)
    huggingface_filename: str = Field(default="", max_length=1024)
    huggingface_revision: str = Field(default="", max_length=255)
    local_path: str = Field(default="", max_length=4096)
    bundled_name: str = Field(default="", max_length=64)
    resolved_revision: str = Field(default="", max_length=64)
    state: ModelFileState
    state_message: str = Field(default="", max_length=4096)
    size: int = Field(default=0, ge=0)
    downloaded_size: int = Field(default=0, ge=0)
    download_rate: int = Field(default=0, ge=0)
    resolved_paths: list[str] = []
