"""Workers that prove who they are by a key, are numbered by their starts, and may be taken out of service."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE workers ADD COLUMN public_key VARCHAR(64)",
    "CREATE UNIQUE INDEX workers_public_key ON workers (public_key)",
    "ALTER TABLE workers ADD COLUMN session BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE workers ADD COLUMN start_id VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE workers ADD COLUMN earlier_start VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE workers ADD COLUMN refused_start VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE workers ADD COLUMN boot VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE workers ADD COLUMN maintenance BOOLEAN NOT NULL DEFAULT FALSE",
)
