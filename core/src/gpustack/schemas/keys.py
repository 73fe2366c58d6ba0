"""API keys."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from gpustack.schemas.common import Input, Record, Title


class ApiKeyCreate(Input):
    """A key to make. ``expires_in`` is seconds from now; none or 0 never expires."""

    name: Title = Field(min_length=1, max_length=128)
    description: str = Field(default="", max_length=1024)
    expires_in: int | None = Field(default=None, ge=0, le=100 * 365 * 86400)
    #: Names of the only models it may ask; empty allows all.
    allowed_model_names: list[Title] = Field(default_factory=list, max_length=1000)


class ApiKeyPublic(Record):
    """A key without its secret."""

    name: str
    description: str = ""
    user_id: int
    #: The readable first part of the key, to tell keys apart.
    access_key: str
    allowed_model_names: list[str] = []
    expires_at: datetime | None = None


class ApiKeyCreated(ApiKeyPublic):
    """A new key with its text, which is shown this once and kept nowhere."""

    value: str
