"""Newer versions of GPUStack."""

from __future__ import annotations

from datetime import datetime

from gpustack.schemas.common import Output


class UpdatePublic(Output):
    """The answer of ``GET /v2/update``. ``latest_version`` and ``checked_at`` are null until something was heard."""

    current_version: str
    latest_version: str | None
    update_available: bool
    url: str
    checked_at: datetime | None
    enabled: bool
