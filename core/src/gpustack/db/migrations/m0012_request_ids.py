"""Records of usage are found by the id that the client was told."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE usage_records ADD COLUMN request_id VARCHAR(128) NOT NULL DEFAULT ''",
    "CREATE INDEX usage_records_request_id ON usage_records (request_id)",
)
