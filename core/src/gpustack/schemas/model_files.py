"""Model files: what one worker knows of one source."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from gpustack.schemas.common import Input, Output, Record
from gpustack.schemas.models import Source


class ModelFileState(StrEnum):
    """Whether the worker has the files."""

    ANALYZING = "analyzing"
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
    #: Digest over the source's fields: equal sources have equal keys.
    source_key: str
    state: ModelFileState
    state_message: str = ""
    #: Grows with every request to read the files anew; a report answers one request.
    request: int = 1
    size: int = 0
    resolved_paths: list[str] = []
    facts: FactsDocument | None = None


class ModelFileReport(Input):
    """What a worker found."""

    request: int
    state: ModelFileState
    state_message: str = Field(default="", max_length=4096)
    size: int = 0
    resolved_paths: list[str] = []
    facts: FactsDocument | None = None
